"""Serving codes over HTTP: `tvq serve`. Requests that come together are computed together."""
