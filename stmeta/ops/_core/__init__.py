"""What serves all ops: checks of arguments, registration, dispatch, limits, derivatives."""
