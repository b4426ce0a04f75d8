"""The commands of `stmeta`, one file each; `stmeta.cli` puts them together."""
