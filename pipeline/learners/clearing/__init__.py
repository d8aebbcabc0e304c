"""The learner ``clearing``: sums of integers, and the solver that makes weights of them."""
