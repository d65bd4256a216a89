"""Holdfast: watch, measure, diagnose, cure and prove, for networks in training."""
