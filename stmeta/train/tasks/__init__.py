"""What can be trained, one module per task: its config, its loss, its evaluation, its pictures."""
