package authz_test

import (
	"encoding/json"
	"net/http/httptest"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/behest-go/behest/authz"
)

func TestMetadata(t *testing.T) {
	m := &authz.MetadataEndpoint{Issuer: endpointIssuer}
	rec := httptest.NewRecorder()
	m.ServeHTTP(rec, httptest.NewRequest("GET", "/.well-known/oauth-authorization-server", nil))
	require.Equal(t, 200, rec.Code)
	require.Equal(t, "application/json", rec.Header().Get("Content-Type"))
	require.Equal(t, "public, max-age=3600", rec.Header().Get("Cache-Control"))
	require.Equal(t, "nosniff", rec.Header().Get("X-Content-Type-Options"))
	require.JSONEq(t, `{
		"issuer": "https://social.example",
		"token_endpoint": "https://social.example/oauth2/token",
		"introspection_endpoint": "https://social.example/oauth2/introspect",
		"revocation_endpoint": "https://social.example/oauth2/revoke",
		"behest_grants_endpoint": "https://social.example/oauth2/grants",
		"behest_use_endpoint": "https://social.example/oauth2/use",
		"grant_types_supported": ["urn:behest:grant-type:operation", "urn:ietf:params:oauth:grant-type:token-exchange", "client_credentials"],
		"authorization_details_types_supported": ["social_operation"],
		"response_types_supported": [],
		"token_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
		"introspection_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
		"revocation_endpoint_auth_methods_supported": ["client_secret_basic", "client_secret_post", "private_key_jwt"],
		"dpop_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256", "RS256"],
		"token_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256", "RS256"],
		"introspection_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256", "RS256"],
		"revocation_endpoint_auth_signing_alg_values_supported": ["EdDSA", "Ed25519", "ES256", "RS256"]
	}`, rec.Body.String())

	m = &authz.MetadataEndpoint{Issuer: "https://social.example/a", Prefix: "/b/c", Scopes: []string{"x"}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			rec := httptest.NewRecorder()
			m.ServeHTTP(rec, httptest.NewRequest("GET", "/?x=%zz", nil))
			var got map[string]any
			if err := json.Unmarshal(rec.Body.Bytes(), &got); err != nil || got["token_endpoint"] != "https://social.example/a/b/c/token" || len(got["scopes_supported"].([]any)) != 1 {
				t.Error(err, got)
			}
		})
	}
	wg.Wait()
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS", "BREW"} {
		rec := httptest.NewRecorder()
		m.ServeHTTP(rec, httptest.NewRequest(method, "/", nil))
		endpointRefused(t, rec, 405, "invalid_request")
		require.Equal(t, "GET, HEAD", rec.Header().Get("Allow"))
	}
}
