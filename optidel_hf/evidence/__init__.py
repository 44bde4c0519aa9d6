"""The evidence: arms, budgets and seeds, what each costs and what it is worth downstream."""
