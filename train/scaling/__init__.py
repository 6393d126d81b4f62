"""Scaling laws: a ladder of training runs, the laws that fit it, and a prediction that is then tested."""
