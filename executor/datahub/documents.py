"""The GraphQL documents, one an operation; each is allowed by the contract's schema."""

STATE = """
query executionState($urn: String!) {
  executionRequest(urn: $urn) { urn result { status startTimeMs } }
}
"""

REQUEST = """
query executionRequest($urn: String!) {
  executionRequest(urn: $urn) {
    urn
    input { task arguments { key value } executorId }
  }
}
"""

FOLLOW = """
query followExecution($urn: String!) {
  executionRequest(urn: $urn) { urn result { status startTimeMs durationMs report } }
}
"""

PATCH = """
mutation writeStates($input: [PatchEntityInput!]!) {
  patchEntities(input: $input) { urn success error }
}
"""

PATCH_ONE = """
mutation writeState($input: PatchEntityInput!) {
  patchEntity(input: $input) { urn success error }
}
"""

SECRETS = """
query secretValues($input: GetSecretValuesInput!) {
  getSecretValues(input: $input) { name value }
}
"""
