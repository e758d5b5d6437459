"""DataHub, over GraphQL and OpenAPI."""
