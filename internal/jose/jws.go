package jose

import (
	"crypto/ed25519"
	"fmt"
	"slices"
	"strings"

	jose "github.com/go-jose/go-jose/v4"
)

const defaultBytes = 8 << 10

// Rules are what a JWS must be.
type Rules struct {
	Algorithms []string // that are allowed; nil: all of Algorithms
	// Types are the allowed values of "typ", such as "at+jwt". Case does not matter, nor "application/" in front
	// (RFC 7515 §4.1.9). An empty one allows that there is none. Nil: nothing is allowed.
	Types []string
	// Embedded wants the public key in the header, in "jwk" (RFC 9449 §4.2). False: then there must be none.
	Embedded bool
	MaxBytes int // of the whole; zero: 8 KiB
}

// A JWS is one that was read and not yet verified.
type JWS struct {
	parsed  *jose.JSONWebSignature
	signed  string // what the signature is of
	alg, id string
	key     *Key // embedded
}

// Parse reads a compact JWS and checks all but the signature.
func (r *Rules) Parse(token string) (*JWS, error) {
	most := r.MaxBytes
	if most == 0 {
		most = defaultBytes
	}
	if len(token) > most {
		return nil, invalid("a JWS of more than %d bytes", most)
	}
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		return nil, invalid("not a compact JWS: it has three parts")
	}
	var head []byte
	for i, part := range parts {
		raw, err := decode64(part)
		if err != nil {
			return nil, invalid("part %d of the JWS is not base64url", i+1)
		}
		if i == 0 {
			head = raw
		}
	}
	header, err := object(head)
	if err != nil {
		return nil, fmt.Errorf("%w in the header of a JWS", err)
	}
	j := &JWS{}
	if j.alg, _ = text(header["alg"]); !slices.Contains(r.algorithms(), j.alg) || !slices.Contains(Algorithms(), j.alg) {
		return nil, invalid("alg is not allowed: %.20q", j.alg)
	}
	if raw, there := header["kid"]; there {
		if j.id, there = text(raw); !there || len(j.id) > maxID {
			return nil, invalid("kid is not text of 1 to %d bytes", maxID)
		}
	}
	typ := ""
	if raw, there := header["typ"]; there {
		if typ, there = text(raw); !there {
			return nil, invalid("typ is not text")
		}
	}
	if !r.allows(typ) {
		return nil, invalid("typ is not allowed: %.40q", typ)
	}
	// RFC 7515 §4.1.11: this package understands no extension. The others bring a key, or say where one is.
	for _, name := range []string{"crit", "b64", "jku", "x5u", "x5c", "jwk"} {
		if _, there := header[name]; there && (name != "jwk" || !r.Embedded) {
			return nil, invalid("a header with %s", name)
		}
	}
	if r.Embedded {
		if j.key, err = ParseKey(header["jwk"]); err != nil {
			return nil, fmt.Errorf("%w in the header", err)
		}
	}
	// It would take more than the above, and reads the same bytes.
	if j.parsed, err = jose.ParseSignedCompact(token, []jose.SignatureAlgorithm{jose.SignatureAlgorithm(j.alg)}); err != nil {
		return nil, invalid("not a JWS")
	}
	j.signed = token[:len(token)-len(parts[2])-1]
	return j, nil
}

func (r *Rules) algorithms() []string {
	if r.Algorithms == nil {
		return Algorithms()
	}
	return r.Algorithms
}

func (r *Rules) allows(typ string) bool {
	if len(typ) > 12 && strings.EqualFold(typ[:12], "application/") && !strings.Contains(typ[12:], "/") {
		typ = typ[12:]
	}
	return slices.ContainsFunc(r.Types, func(want string) bool { return strings.EqualFold(want, typ) })
}

// KeyID is the "kid", empty if there is none.
func (j *JWS) KeyID() string { return j.id }

// Algorithm is the "alg", which is allowed.
func (j *JWS) Algorithm() string { return j.alg }

// Verify returns the payload if one of the keys has signed it: one with the kid that the header names, or without a
// kid there, of the same algorithm. ErrNoKey means that there is no such key.
func (j *JWS) Verify(keys Set) ([]byte, error) {
	found := false
	for _, k := range keys {
		if !k.is(j.alg) || j.id != "" && j.id != k.ID() {
			continue
		}
		found = true
		if payload, err := j.verify(k); err == nil {
			return payload, nil
		}
	}
	if !found {
		return nil, ErrNoKey
	}
	return nil, invalid("wrong signature")
}

// verify is go-jose's, but for the one name that it does not know, of an algorithm that it does.
func (j *JWS) verify(k *Key) ([]byte, error) {
	if public, ok := k.jwk.Key.(ed25519.PublicKey); ok && j.alg == Ed25519 {
		if !ed25519.Verify(public, []byte(j.signed), j.parsed.Signatures[0].Signature) {
			return nil, jose.ErrCryptoFailure
		}
		return j.parsed.UnsafePayloadWithoutVerification(), nil
	}
	return j.parsed.Verify(k.jwk.Key)
}

// Decoy does the work of Verify with the first key of the right algorithm, whatever its ID, and tells nothing: for who
// has no key to verify with and does not want that to be seen.
func (j *JWS) Decoy(keys Set) {
	for _, k := range keys {
		if k.is(j.alg) {
			_, _ = j.verify(k)
			return
		}
	}
}

// VerifyEmbedded returns the payload and the key in the header, which has signed it: it proves that the sender has that
// key, and nothing of who it is.
func (j *JWS) VerifyEmbedded() ([]byte, *Key, error) {
	if j.key == nil {
		return nil, nil, ErrNoKey
	}
	if !j.key.is(j.alg) {
		return nil, nil, invalid("alg is %s, the key in the header is of %s", j.alg, j.key.Algorithm())
	}
	payload, err := j.verify(j.key)
	if err != nil {
		return nil, nil, invalid("wrong signature")
	}
	return payload, j.key, nil
}

// UnverifiedClaims are what the JWS says without proof: good to look for the key that it needs, and for nothing else.
func (j *JWS) UnverifiedClaims() (*Claims, error) {
	return ParseClaims(j.parsed.UnsafePayloadWithoutVerification())
}

// Claims verifies a JWT (RFC 7519).
func (r *Rules) Claims(token string, keys Set) (*Claims, error) {
	j, err := r.Parse(token)
	if err != nil {
		return nil, err
	}
	payload, err := j.Verify(keys)
	if err != nil {
		return nil, err
	}
	return ParseClaims(payload)
}

// EmbeddedClaims verifies a JWT by the key in its header; see [JWS.VerifyEmbedded].
func (r *Rules) EmbeddedClaims(token string) (*Claims, *Key, error) {
	j, err := r.Parse(token)
	if err != nil {
		return nil, nil, err
	}
	payload, key, err := j.VerifyEmbedded()
	if err != nil {
		return nil, nil, err
	}
	claims, err := ParseClaims(payload)
	return claims, key, err
}
