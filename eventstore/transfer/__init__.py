"""The log as a file: exports, and imports that check every line of one."""
