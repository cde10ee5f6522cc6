"""The rooms behind launch/eval.py."""
