"""Mobile rewrites, one per file, each equal to what it replaces in float32."""
