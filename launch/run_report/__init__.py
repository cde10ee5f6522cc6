"""What `launch/report.py` is made of: reading a run's folder, drawing curves, looking for reward hacking, the page."""
