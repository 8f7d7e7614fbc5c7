"""Who is who: keys, requests, certificates, and signatures that name their purpose."""
