package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	_ "crypto/sha256" // of thumbprints
	"encoding/base64"
	"errors"
	"fmt"
	"math/big"
	"slices"

	jose "github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/json"
)

// Algorithms (RFC 7518 §3.1, RFC 8037 §3.1, RFC 9864 §2.2).
const (
	EdDSA   = "EdDSA"   // with Ed25519
	Ed25519 = "Ed25519" // the same by the name that says so; nothing is signed by it here
	ES256   = "ES256"   // with P-256
	RS256   = "RS256"   // with 2048 to 4096 bits
)

// Algorithms returns those that this package knows, the default first.
func Algorithms() []string { return []string{EdDSA, Ed25519, ES256, RS256} }

// ErrInvalid is wrapped by all errors of what was given, whose texts are for the log and quote no token. ErrNoKey says
// that none of the keys is the one that the JWS names: with others it may verify.
var (
	ErrInvalid = errors.New("jose: invalid")
	ErrNoKey   = fmt.Errorf("%w: no such key", ErrInvalid)
)

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
}

const (
	maxKeyText = 8 << 10  // bytes of a JWK
	maxSetText = 64 << 10 // bytes of a JWK set
	maxKeys    = 16       // in a set
	maxID      = 256      // bytes of a "kid"
)

// A Key is a public key that verifies signatures by one algorithm. It never changes.
type Key struct {
	jwk        jose.JSONWebKey
	thumbprint string
}

// NewKey takes ed25519.PublicKey, *ecdsa.PublicKey of P-256, or *rsa.PublicKey of 2048 to 4096 bits. An empty id is the
// thumbprint.
func NewKey(public crypto.PublicKey, id string) (*Key, error) {
	k := &Key{jwk: jose.JSONWebKey{Key: public, KeyID: id, Use: "sig"}}
	switch public := public.(type) {
	case ed25519.PublicKey:
		if len(public) != ed25519.PublicKeySize {
			return nil, invalid("a key of Ed25519 has 32 bytes")
		}
		k.jwk.Algorithm = EdDSA
	case *ecdsa.PublicKey:
		if public == nil || public.Curve != elliptic.P256() {
			return nil, invalid("an EC key must be of P-256")
		}
		if _, err := public.ECDH(); err != nil {
			return nil, invalid("not a point of P-256")
		}
		k.jwk.Algorithm = ES256
	case *rsa.PublicKey:
		if public == nil || public.N == nil || public.N.BitLen() < 2048 || public.N.BitLen() > 4096 {
			return nil, invalid("an RSA key must have 2048 to 4096 bits")
		}
		if public.N.Bit(0) == 0 || public.E < 3 || public.E&1 == 0 || int64(public.E) > 1<<31-1 {
			return nil, invalid("not an RSA key: n and e are odd, and e is 3 to 2^31-1")
		}
		k.jwk.Algorithm = RS256
	default:
		return nil, invalid("a key of %T", public)
	}
	sum, err := k.jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, invalid("%v", err)
	}
	k.thumbprint = base64.RawURLEncoding.EncodeToString(sum)
	if id == "" {
		k.jwk.KeyID = k.thumbprint
	}
	return k, nil
}

// A jwk is what is looked at in one (RFC 7517 §4, RFC 7518 §6, RFC 8037 §2). The rest, such as certificates, says
// nothing here.
type jwk struct {
	Type  *string  `json:"kty"`
	Curve *string  `json:"crv"`
	X     *string  `json:"x"`
	Y     *string  `json:"y"`
	N     *string  `json:"n"`
	E     *string  `json:"e"`
	ID    *string  `json:"kid"`
	Alg   *string  `json:"alg"`
	Use   *string  `json:"use"`
	Ops   []string `json:"key_ops"`
}

// ParseKey reads a public JWK of at most 8 KiB (RFC 7517): kty OKP with crv Ed25519, EC with P-256, or RSA with 2048 to
// 4096 bits. Private parts, even empty ones, are refused, and alg, use and key_ops that say anything but that the key
// verifies signatures by its one algorithm. Without kid its ID is the thumbprint.
func ParseKey(text []byte) (*Key, error) {
	if len(text) > maxKeyText {
		return nil, invalid("a JWK of more than %d bytes", maxKeyText)
	}
	members, err := object(text)
	if err != nil {
		return nil, fmt.Errorf("%w in a JWK", err)
	}
	for _, name := range []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"} {
		if _, there := members[name]; there {
			return nil, invalid("a JWK with a private part, %q", name)
		}
	}
	for name, raw := range members {
		if string(raw) == "null" {
			return nil, invalid("a JWK whose %.40q is null", name)
		}
	}
	var j jwk
	if err := json.Unmarshal(text, &j); err != nil {
		return nil, invalid("a JWK: %v", err)
	}
	public, err := j.public()
	if err != nil {
		return nil, err
	}
	id := ""
	if j.ID != nil {
		if id = *j.ID; len(id) == 0 || len(id) > maxID {
			return nil, invalid("a kid has 1 to %d bytes", maxID)
		}
	}
	k, err := NewKey(public, id)
	if err != nil {
		return nil, err
	}
	_, hasOps := members["key_ops"]
	switch {
	case j.Alg != nil && !k.is(*j.Alg):
		return nil, invalid("the JWK's alg is %.20q, its key is of %s", *j.Alg, k.Algorithm())
	case j.Use != nil && *j.Use != "sig":
		return nil, invalid("the JWK's use is %.20q, not sig", *j.Use)
	case hasOps && !slices.Equal(j.Ops, []string{"verify"}):
		return nil, invalid("the JWK's key_ops are not [\"verify\"]")
	}
	return k, nil
}

func (j *jwk) public() (crypto.PublicKey, error) {
	kind, curve := deref(j.Type), deref(j.Curve)
	switch {
	case kind == "OKP" && curve == "Ed25519":
		x, err := exactly(j.X, "x", 32)
		return ed25519.PublicKey(x), err
	case kind == "EC" && curve == "P-256":
		x, err := exactly(j.X, "x", 32)
		if err != nil {
			return nil, err
		}
		y, err := exactly(j.Y, "y", 32)
		if err != nil {
			return nil, err
		}
		key, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), slices.Concat([]byte{4}, x, y))
		if err != nil {
			return nil, invalid("not a point of P-256")
		}
		return key, nil
	case kind == "RSA" && j.Curve == nil:
		n, err := minimal(j.N, "n", 512)
		if err != nil {
			return nil, err
		}
		e, err := minimal(j.E, "e", 4)
		if err != nil {
			return nil, err
		}
		return &rsa.PublicKey{N: n, E: int(e.Int64())}, nil
	case kind == "OKP", kind == "EC":
		return nil, invalid("a JWK of kty %s with crv %.20q, want Ed25519 with OKP or P-256 with EC", kind, curve)
	}
	return nil, invalid("a JWK of kty %.20q, want OKP, EC or RSA", kind)
}

func deref(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func exactly(text *string, name string, n int) ([]byte, error) {
	if raw, err := decode64(deref(text)); err == nil && len(raw) == n {
		return raw, nil
	}
	return nil, invalid("the JWK's %s is not base64url of %d bytes", name, n)
}

// minimal reads a Base64urlUInt (RFC 7518 §2), which has no zeros in front.
func minimal(text *string, name string, most int) (*big.Int, error) {
	raw, err := decode64(deref(text))
	if err != nil || len(raw) == 0 || len(raw) > most || raw[0] == 0 {
		return nil, invalid("the JWK's %s is not base64url of 1 to %d bytes without zeros in front", name, most)
	}
	return new(big.Int).SetBytes(raw), nil
}

// ID is the "kid".
func (k *Key) ID() string { return k.jwk.KeyID }

// Algorithm is the one that the key is for. With EdDSA that is Ed25519, too.
func (k *Key) Algorithm() string { return k.jwk.Algorithm }

// is reports whether alg names the key's algorithm.
func (k *Key) is(alg string) bool {
	return alg == k.jwk.Algorithm || alg == Ed25519 && k.jwk.Algorithm == EdDSA
}

// Thumbprint is that of RFC 7638 with SHA-256, in base64url: 43 characters.
func (k *Key) Thumbprint() string { return k.thumbprint }

// MarshalJSON writes a JWK with kid, alg and use.
func (k *Key) MarshalJSON() ([]byte, error) { return k.jwk.MarshalJSON() }

// A Set is a JWK set (RFC 7517 §5).
type Set []*Key

// ParseSet reads a JWK set of at most 64 KiB with 1 to 16 keys, each as ParseKey reads them, no kid and no key twice.
func ParseSet(text []byte) (Set, error) {
	if len(text) > maxSetText {
		return nil, invalid("a JWK set of more than %d bytes", maxSetText)
	}
	members, err := object(text)
	if err != nil {
		return nil, fmt.Errorf("%w in a JWK set", err)
	}
	var raw []json.RawMessage
	if err := json.Unmarshal(members["keys"], &raw); err != nil || len(raw) == 0 || len(raw) > maxKeys {
		return nil, invalid("a JWK set has \"keys\", 1 to %d of them", maxKeys)
	}
	var set Set
	for i, text := range raw {
		k, err := ParseKey(text)
		if err != nil {
			return nil, fmt.Errorf("%w (key %d of the set)", err, i+1)
		}
		for _, other := range set {
			if other.ID() == k.ID() || other.thumbprint == k.thumbprint {
				return nil, invalid("keys %d and another of the set are the same, or have the same kid", i+1)
			}
		}
		set = append(set, k)
	}
	return set, nil
}

// MarshalJSON writes a JWK set; a nil Set has no keys.
func (s Set) MarshalJSON() ([]byte, error) {
	keys := []*Key(s)
	if keys == nil {
		keys = []*Key{}
	}
	return json.Marshal(map[string]any{"keys": keys})
}
