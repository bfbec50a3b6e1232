"""What a cache counts, in the form each monitoring system expects; none adds anything to a hit.

    for                                       module                          needs
    Prometheus                                smcache.exporters.prometheus     smcache[prometheus]
    OpenTelemetry, metrics and spans          smcache.exporters.opentelemetry  smcache[opentelemetry]
    CloudWatch, from Lambda (EMF)             smcache.exporters.emf            nothing
    structured logs                           smcache.exporters.log            nothing

All take a ``SecretCache`` or an ``AsyncSecretCache``. Values of secrets are never exported, and their names only where
``secret_names=True`` asks for them.
"""
