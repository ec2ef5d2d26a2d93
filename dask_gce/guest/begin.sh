
# What every boot begins with: whoever tells of it and watches it, then what the metadata say.

# The boot does not wait for it.
exec 9> >(report)
reporting=${!:-} # which an old bash does not tell
exec 8> >(watch)
phase booted
folder=$(mktemp -d)
gather role programs gpus image ports memory shm-size docker-options \
  environment environment-summary python requirements requirements-file install-options secrets secrets-api
role=$(attribute role)
keep_secrets
