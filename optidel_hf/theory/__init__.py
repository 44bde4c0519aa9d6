"""
The perceptron theory behind hard-sample selection: when to keep the hard samples, and when the easy ones.

`study` draws pools and students, `hard_margin` solves the students exactly, `saddle_point` says what they tend to in
high dimension, and `figure` draws both.
"""
