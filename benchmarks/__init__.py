"""What is measured and how; results are committed with the machine they came from. See README.md."""
