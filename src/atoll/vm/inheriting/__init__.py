"""What guests take over of their host: certificates of authorities, and proxies."""
