"""Meshes and sharding rules; models never name a mesh axis."""
