"""The host's side of the guest agent: frames, streams, requests, executions."""
