"""What several layers share: processes, timers, progress, JSON, files."""
