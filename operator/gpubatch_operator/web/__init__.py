"""What people and programs may read over HTTP: the queue, the jobs, the nodes, and a page that shows them."""
