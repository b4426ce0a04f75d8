"""What a video file holds, as its headers and packets say: streams, times, display, faults."""
