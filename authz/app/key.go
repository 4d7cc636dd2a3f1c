package app

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"github.com/behest-go/behest/internal/jose"
)

const (
	assertionType = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" // RFC 7523 §2.2
	assertionLife = time.Minute

	dpop      = "DPoP" // the scheme, the token_type and the header of proofs
	useNonce  = "use_dpop_nonce"
	maxNonce  = 1024
	mostHosts = 64
)

// A Key is a private key that shows itself in no format. The zero Key is none. Copies are the same key.
type Key struct{ of *keyState }

type keyState struct {
	signer *jose.Signer
	mu     sync.Mutex
	own    map[[3]string]ownToken // of client_credentials, by issuer, client and endpoint
	nonces map[string]string      // for proofs, by origin
}

type ownToken struct {
	token Secret
	until time.Time
}

// NewKey takes ed25519.PrivateKey, *ecdsa.PrivateKey of P-256 or *rsa.PrivateKey of 2048 to 4096 bits. The id is its
// "kid" in the app's JWK set; empty: its thumbprint (RFC 7638).
func NewKey(private crypto.Signer, id string) (Key, error) {
	s, err := jose.NewSigner(private, id)
	if err != nil {
		return Key{}, fmt.Errorf("app: key: %w", err)
	}
	return Key{&keyState{signer: s, own: map[[3]string]ownToken{}, nonces: map[string]string{}}}, nil
}

// IsZero reports whether there is no key.
func (k Key) IsZero() bool { return k.of == nil }

// JWKS is the public half as a JWK set, to be registered with the server. Empty for the zero Key.
func (k Key) JWKS() string {
	if k.IsZero() {
		return ""
	}
	text, _ := jose.Set{k.of.signer.Key()}.MarshalJSON() // of a sound key
	return string(text)
}

// Format shows the ID of the key, whatever the verb.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.shown()) }

// LogValue is what Format prints.
func (k Key) LogValue() slog.Value { return slog.StringValue(k.shown()) }

// MarshalText is what Format prints.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.shown()), nil }

func (k Key) shown() string {
	if k.IsZero() {
		return "no key"
	}
	return "key " + k.of.signer.Key().ID()
}

// authorize returns the Authorization header of a request to an endpoint, or adds an assertion to its form.
func (c *Client) authorize(ctx context.Context, method string, form url.Values) (string, error) {
	if c.Key.IsZero() {
		pair := url.QueryEscape(c.ID) + ":" + url.QueryEscape(c.Secret.Reveal()) // RFC 6749 §2.3.1
		return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)), nil
	}
	if method == http.MethodGet { // has no form: by a token for the app itself
		token, err := c.Key.token(ctx, c)
		return "Bearer " + token, err
	}
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	now := c.now()
	// For the issuer and nobody else (RFC 7523 §3): an assertion for two servers could be carried by the one to the other.
	assertion, err := c.Key.of.signer.Sign("JWT", map[string]any{
		"iss": c.ID, "sub": c.ID, "aud": c.Issuer, "jti": base64.RawURLEncoding.EncodeToString(id[:]),
		"iat": now.Unix(), "exp": now.Add(assertionLife).Unix(),
	})
	if err != nil {
		return "", fmt.Errorf("app: key: %w", err)
	}
	form.Set("client_assertion_type", assertionType)
	form.Set("client_assertion", assertion)
	return "", nil
}

func ownOf(c *Client) [3]string { return [...]string{c.Issuer, c.ID, c.TokenURL} }

// token is the app's own, of client_credentials: fetched when it is needed, and kept until a minute before its end.
func (k Key) token(ctx context.Context, c *Client) (string, error) {
	k.of.mu.Lock()
	kept, ok := k.of.own[ownOf(c)]
	k.of.mu.Unlock()
	if ok && c.now().Before(kept.until) {
		return kept.token.Reveal(), nil
	}
	var wire struct {
		AccessToken Secret `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
	}
	sent := c.now()
	if err := c.call(ctx, callTimeout, http.MethodPost, c.TokenURL, "/oauth2/token", url.Values{"grant_type": {"client_credentials"}}, &wire); err != nil {
		return "", err
	}
	if !visible(wire.AccessToken.Reveal()) || !strings.EqualFold(wire.TokenType, "Bearer") {
		return "", fmt.Errorf("%w: no usable access_token", ErrProtocol)
	}
	life := time.Duration(min(max(wire.ExpiresIn, 0), 3600)) * time.Second
	k.of.mu.Lock()
	defer k.of.mu.Unlock()
	k.of.own[ownOf(c)] = ownToken{wire.AccessToken, sent.Add(life - time.Minute)}
	return wire.AccessToken.Reveal(), nil
}

func (k Key) forget(c *Client) {
	k.of.mu.Lock()
	defer k.of.mu.Unlock()
	delete(k.of.own, ownOf(c))
}

// proof is one of RFC 9449 §4.2, with the last nonce that the server gave.
func (k Key) proof(method string, u *url.URL, token string, now time.Time) (string, error) {
	to := *u
	to.RawQuery, to.ForceQuery, to.Fragment, to.RawFragment = "", false, "", ""
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	if method == "" {
		method = http.MethodGet
	}
	claims := map[string]any{"htm": method, "htu": to.String(), "iat": now.Unix(), "jti": base64.RawURLEncoding.EncodeToString(id[:])}
	k.of.mu.Lock()
	if nonce := k.of.nonces[origin(u)]; nonce != "" {
		claims["nonce"] = nonce
	}
	k.of.mu.Unlock()
	if token != "" {
		sum := sha256.Sum256([]byte(token))
		claims["ath"] = base64.RawURLEncoding.EncodeToString(sum[:])
	}
	text, err := k.of.signer.SignEmbedded("dpop+jwt", claims)
	if err != nil {
		return "", fmt.Errorf("app: key: %w", err)
	}
	return text, nil
}

// note keeps the nonce that an answer brings (RFC 9449 §8.2).
func (k Key) note(u *url.URL, h http.Header) {
	nonce := h.Get("DPoP-Nonce")
	if nonce == "" || len(nonce) > maxNonce {
		return
	}
	k.of.mu.Lock()
	defer k.of.mu.Unlock()
	if len(k.of.nonces) >= mostHosts {
		clear(k.of.nonces) // they are asked for again
	}
	k.of.nonces[origin(u)] = nonce
}
