"""Latency reports of phones and farms, judged: measure, import, gate, predict."""
