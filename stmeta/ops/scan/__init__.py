"""Whole sequences of steps in one call, controller and memory."""
