package authz_test

import (
	"encoding/json"
	"net/http"
	"testing"
	"time"

	foreign "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/stretchr/testify/require"
)

// Software that has never heard of Behest finds the keys by the metadata (RFC 8414) and verifies the token by them.
func TestJWTForeignVerifier(t *testing.T) {
	w := newJWTWorld(t)
	get := func(url string, into any) {
		res, err := http.Get(url)
		require.NoError(t, err)
		defer res.Body.Close()
		require.NoError(t, json.NewDecoder(res.Body).Decode(into))
	}
	var metadata struct {
		Issuer string `json:"issuer"`
		JWKS   string `json:"jwks_uri"`
	}
	var keys foreign.JSONWebKeySet
	get(w.URL+"/.well-known/oauth-authorization-server", &metadata)
	get(metadata.JWKS, &keys)
	require.Len(t, keys.Keys, 1)
	require.True(t, keys.Keys[0].IsPublic())

	token, err := jwt.ParseSigned(w.Redeem(w.issue()), []foreign.SignatureAlgorithm{foreign.EdDSA})
	require.NoError(t, err)
	require.Equal(t, "at+jwt", token.Headers[0].ExtraHeaders[foreign.HeaderType])
	var claims jwt.Claims
	var more struct {
		Client string `json:"client_id"`
		Scope  string `json:"scope"`
	}
	require.NoError(t, token.Claims(keys, &claims, &more))
	require.NoError(t, claims.ValidateWithLeeway(jwt.Expected{Issuer: metadata.Issuer, AnyAudience: jwt.Audience{jwtAudience}, Subject: "zhang-san", Time: w.Clock.Now()}, 0))
	require.Error(t, claims.ValidateWithLeeway(jwt.Expected{AnyAudience: jwt.Audience{metadata.Issuer}, Time: w.Clock.Now()}, 0))
	require.ErrorIs(t, claims.ValidateWithLeeway(jwt.Expected{Time: w.Clock.Now().Add(5*time.Minute + time.Second)}, 0), jwt.ErrExpired)
	require.Equal(t, "bookbot", more.Client)
	require.Equal(t, "group:42/message.write", more.Scope)
}
