"""What lies in the folders: discovery, sizes, captions, buckets. No torch here, so that ``validate`` sees what training will see."""
