package authz

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/store"
)

// Methods of client authentication, as RFC 7591 §2 and OpenID Connect Core §9 call them.
const (
	secretBasic = "client_secret_basic"
	secretPost  = "client_secret_post"
	privateKey  = "private_key_jwt"
	noAuth      = "none"
)

const assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 §2.2

const (
	assertionLife   = 10 * time.Minute // the latest exp, from now
	assertionLeeway = 30 * time.Second // by which a client's clock may be ahead
	maxAssertionID  = 256              // bytes
)

// kindAssertion is the kind of an assertion that was taken: its ID is a hash of the client's and its own, so each is an
// aggregate of its own; App is whose it is, NotAfter when it expires.
const kindAssertion = "assertion"

// A JWT of another kind, such as an access token or a proof, is no assertion (RFC 8725 §3.11).
var assertionTypes = []string{"", "JWT", "client-authentication+jwt"}

// assertion authenticates by private_key_jwt (RFC 7521 §4.2, RFC 7523 §3, OpenID Connect Core §9). Whose signature is
// right learns what else is wrong; any other gets errClient.
//
// aud is one value, as text or as the only one of a list: an assertion that names two servers can be carried by the one
// to the other, which is why the OpenID Foundation and draft-ietf-oauth-rfc7523bis forbid it.
func (c *Clients) assertion(ctx context.Context, now *roster, form url.Values) (*App, error) {
	if form.Get("client_assertion_type") != assertionType || form.Get("client_assertion") == "" {
		return nil, errClient
	}
	j, err := (&jose.Rules{Types: assertionTypes}).Parse(form.Get("client_assertion"))
	if err != nil {
		return nil, noClient("the assertion is malformed, or of a typ or alg that is not taken here")
	}
	claims, err := j.UnverifiedClaims()
	if err != nil {
		return nil, noClient("the assertion's claims are malformed")
	}
	id := claims.Subject
	switch {
	case id == "" || claims.Issuer != id:
		return nil, noClient("iss and sub of the assertion must both be the client_id")
	case form.Get("client_id") != "" && form.Get("client_id") != id:
		return nil, badRequest("client_id is not the client that authenticates")
	}
	known, ok := now.byID[id]
	if !ok {
		known = &now.none
	}
	_, err = j.Verify(known.keys)
	if errors.Is(err, jose.ErrNoKey) {
		j.Decoy(now.none.keys) // the same work
	}
	switch {
	case err != nil || !ok:
		return nil, errClient
	case known.app.AuthMethod != "" && known.app.AuthMethod != privateKey:
		return nil, errClient
	case len(c.Audience) == 0 || c.Store == nil:
		return nil, noClient("private_key_jwt is not offered here")
	}
	// It is the client's own: what was unverified is verified.
	at := clock(c.Now)
	switch {
	case len(claims.Audience) != 1 || !slices.Contains(c.Audience, claims.Audience[0]):
		return nil, noClient("aud of the assertion must be the issuer or the endpoint, and nothing else")
	case claims.Expires.IsZero():
		return nil, noClient("the assertion has no exp")
	case !at.Before(claims.Expires):
		return nil, noClient("the assertion has expired")
	case claims.Expires.After(at.Add(assertionLife + assertionLeeway)):
		return nil, noClient("exp of the assertion is more than 10 minutes ahead")
	case claims.NotBefore.After(at.Add(assertionLeeway)):
		return nil, noClient("nbf of the assertion is to come")
	case claims.IssuedAt.After(at.Add(assertionLeeway)), !claims.IssuedAt.IsZero() && claims.IssuedAt.Before(at.Add(-assertionLife-assertionLeeway)):
		return nil, noClient("iat of the assertion is not now")
	case claims.ID == "" || len(claims.ID) > maxAssertionID:
		return nil, noClient("the assertion needs a jti of 1 to 256 bytes")
	}
	sum := sha256.Sum256([]byte(id + "\x00" + claims.ID)) // an ID has no NUL
	out, err := c.Store.Apply(ctx, at, []store.Op{store.Put(store.Record{
		Kind: kindAssertion, ID: base64.RawURLEncoding.EncodeToString(sum[:]), App: id, NotAfter: claims.Expires,
	})})
	if err != nil {
		return nil, fmt.Errorf("authz: storing the ID of an assertion: %w", err)
	}
	if !out.Applied() {
		return nil, noClient("the assertion was used before: its jti is not new")
	}
	app := known.app
	return &app, nil
}

func noClient(description string) error {
	return &fault{status: http.StatusUnauthorized, code: "invalid_client", description: description}
}

// decoys are well-known public keys: of RFC 8037 §A.2, RFC 7515 §A.3.1 and RFC 7638 §3.1. What they verify proves nothing.
const decoys = `{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"},` +
	`{"kty":"EC","crv":"P-256","x":"f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU","y":"x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"},` +
	`{"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB"}]}`
