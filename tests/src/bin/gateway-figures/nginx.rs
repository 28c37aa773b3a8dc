//! nginx as a peer: its configuration for the same backends.

use std::fmt::Write as _;
use std::path::Path;

/// Where packages put it.
pub(crate) const PROGRAM: &str = "/usr/sbin/nginx";

/// A configuration that relays from `port` to the backends at these ports, least busy first, over kept connections, and keeps
/// its files in `folder`.
pub(crate) fn configuration(folder: &Path, port: u16, backends: &[u16]) -> String {
    let folder = folder.display();
    let mut servers = String::new();
    for backend in backends {
        let _ = writeln!(servers, "    server 127.0.0.1:{backend} max_fails=0;");
    }
    let idle = 4 * backends.len().max(64);
    format!(
        "daemon off;
worker_processes auto;
worker_rlimit_nofile 16384;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{
  worker_connections 8192;
}}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  keepalive_requests 100000000;
  upstream workers {{
    least_conn;
{servers}    keepalive {idle};
    keepalive_requests 100000000;
  }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location / {{
      proxy_pass http://workers;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
      proxy_buffering off;
      proxy_read_timeout 600s;
    }}
  }}
}}
"
    )
}
