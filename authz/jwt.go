package authz

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
)

const (
	jwtType    = "at+jwt" // RFC 9068 §2.1
	maxJWTLife = 5 * time.Minute
	maxJWTKeys = 16
)

// A JWTSigner makes the tokens of stateless triggers: JWT access tokens (RFC 9068), which resource servers verify alone
// (see [Remote], and any software that knows the RFC). As an http.Handler it answers GET /oauth2/jwks (RFC 7517) with
// the public keys. Make it with NewJWTSigner. It is safe for concurrent use.
//
// The claims are those of RFC 9068 §2.2: iss, aud, exp, iat, jti, client_id, scope, and sub, which is the account's own
// name: such triggers are only for apps that see it. Besides, there are act with the app as its sub (RFC 8693 §4.1),
// grant_id, domain, operation and event, and, for a token that is bound to a key, cnf (RFC 9449 §6.1).
type JWTSigner struct {
	issuer, audience string
	signer           *jose.Signer
	keys             jose.Set
	jwks             []byte
}

// NewJWTSigner takes the issuer, the audience, which is the resource servers' own URL and never the issuer, and 1 to 16 keys:
// each is the seed of an Ed25519 key, 32 bytes, or a private key in PEM (PKCS #8) for EdDSA, ES256 (P-256) or RS256
// (2048 to 4096 bits). The first one signs, all of them are published. To rotate, add the new key at the end on every
// node, move it to the front on every node when ten minutes have passed, and remove the old one after ten more. It
// reports every fault at once, and shows no key.
func NewJWTSigner(issuer, audience string, keys []grant.Secret) (*JWTSigner, error) {
	s := &JWTSigner{issuer: issuer, audience: audience}
	var faults []error
	if !plainURL(audience) || audience == issuer {
		faults = append(faults, fmt.Errorf("authz: JWTAudience: %.80q is not an https URL with a plain path or none that is not the issuer's", audience))
	}
	if len(keys) == 0 || len(keys) > maxJWTKeys {
		faults = append(faults, fmt.Errorf("authz: JWTKeys: %d keys, want 1 to %d", len(keys), maxJWTKeys))
	}
	seen := map[string]bool{}
	for i, secret := range keys {
		signer, err := parseJWTKey(secret)
		if err == nil && seen[signer.Key().ID()] {
			err = errors.New("is there twice")
		}
		if err != nil {
			faults = append(faults, fmt.Errorf("authz: JWTKeys[%d] %w", i, err))
			continue
		}
		seen[signer.Key().ID()] = true
		if s.signer == nil {
			s.signer = signer
		}
		s.keys = append(s.keys, signer.Key())
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	var err error
	s.jwks, err = json.Marshal(s.keys)
	return s, err
}

// parseJWTKey says nothing of what it was given.
func parseJWTKey(secret grant.Secret) (*jose.Signer, error) {
	text := []byte(secret.Reveal())
	var private crypto.Signer
	if len(text) == ed25519.SeedSize {
		private = ed25519.NewKeyFromSeed(text)
	} else {
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "PRIVATE KEY" || len(strings.TrimSpace(string(rest))) > 0 {
			return nil, fmt.Errorf("has %d bytes, and is neither a seed of %d nor one private key in PEM (PKCS #8)", len(text), ed25519.SeedSize)
		}
		key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
		if err != nil {
			return nil, errors.New("is not a private key of PKCS #8")
		}
		var ok bool
		if private, ok = key.(crypto.Signer); !ok {
			return nil, errors.New("is a private key that does not sign")
		}
	}
	signer, err := jose.NewSigner(private, "") // kid: the thumbprint of RFC 7638
	if err != nil {
		return nil, errors.New("is neither Ed25519, P-256 nor RSA of 2048 to 4096 bits")
	}
	return signer, nil
}

// Format prints the audience, whatever the verb.
func (s *JWTSigner) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "signer for %s", s.audience) }

type jwtClaims struct {
	Issuer    string           `json:"iss"`
	Subject   string           `json:"sub"`
	Audience  string           `json:"aud"`
	ClientID  string           `json:"client_id"`
	IssuedAt  int64            `json:"iat"`
	Expires   int64            `json:"exp"`
	ID        string           `json:"jti"`
	Scope     string           `json:"scope"`
	Act       jwtActor         `json:"act"`
	GrantID   string           `json:"grant_id"`
	Domain    string           `json:"domain"`
	Operation string           `json:"operation"`
	Event     string           `json:"event"`
	Cnf       *jwtConfirmation `json:"cnf,omitempty"`
}

type jwtActor struct {
	Subject string `json:"sub"`
}

type jwtConfirmation struct {
	Thumbprint string `json:"jkt"`
}

// sign makes the token of a grant that was redeemed just now.
func (s *JWTSigner) sign(g *grant.Grant) (grant.Secret, error) {
	c := jwtClaims{Issuer: s.issuer, Subject: g.Account, Audience: s.audience, ClientID: g.App,
		IssuedAt: g.NotAfter.Add(-g.For).Unix(), Expires: g.NotAfter.Unix(), ID: rand.Text(), Scope: g.Scope().String(),
		Act: jwtActor{g.App}, GrantID: g.ID, Domain: g.Domain.String(), Operation: string(g.Event.Operation), Event: g.Event.ID}
	if g.Key != "" {
		c.Cnf = &jwtConfirmation{g.Key}
	}
	text, err := s.signer.Sign(jwtType, &c)
	return grant.NewSecret(text), err
}

// ServeHTTP implements [http.Handler].
func (s *JWTSigner) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !allowed(w, r, http.MethodGet, http.MethodHead) {
		return
	}
	h := w.Header()
	h.Set("Content-Type", "application/jwk-set+json") // RFC 7517 §8.5.2
	h.Set("Cache-Control", "public, max-age=300")     // as long as the longest of the tokens
	h.Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(s.jwks) // an error means that nobody is there any more
}
