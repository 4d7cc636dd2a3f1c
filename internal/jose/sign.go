package jose

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	stdjson "encoding/json"
	"fmt"

	jose "github.com/go-jose/go-jose/v4"
)

// A Signer signs with one key by its one algorithm. It is safe for concurrent use.
type Signer struct {
	private crypto.Signer
	public  *Key
}

// NewSigner takes ed25519.PrivateKey, *ecdsa.PrivateKey of P-256, or *rsa.PrivateKey of 2048 to 4096 bits. An empty id,
// the "kid", is the thumbprint.
func NewSigner(private crypto.Signer, id string) (*Signer, error) {
	switch key := private.(type) {
	case ed25519.PrivateKey:
		if len(key) != ed25519.PrivateKeySize {
			return nil, invalid("a private key of Ed25519 has 64 bytes")
		}
	case *ecdsa.PrivateKey:
		if key == nil {
			return nil, invalid("no key")
		}
	case *rsa.PrivateKey:
		if key == nil {
			return nil, invalid("no key")
		}
	default:
		return nil, invalid("a private key of %T", private)
	}
	public, err := NewKey(private.Public(), id)
	if err != nil {
		return nil, err
	}
	return &Signer{private, public}, nil
}

// Key is the public one.
func (s *Signer) Key() *Key { return s.public }

// Sign returns a compact JWS of the claims, as encoding/json writes them, with alg, kid and typ in its header. An empty
// typ is left out.
func (s *Signer) Sign(typ string, claims any) (string, error) { return s.sign(typ, claims, false) }

// SignEmbedded is Sign with the public key in the header instead of the kid (RFC 9449 §4.2).
func (s *Signer) SignEmbedded(typ string, claims any) (string, error) {
	return s.sign(typ, claims, true)
}

func (s *Signer) sign(typ string, claims any, embed bool) (string, error) {
	payload, err := stdjson.Marshal(claims)
	if err != nil {
		return "", fmt.Errorf("jose: claims: %w", err)
	}
	return s.signBytes(typ, payload, embed)
}

func (s *Signer) signBytes(typ string, payload []byte, embed bool) (string, error) {
	options := (&jose.SignerOptions{EmbedJWK: embed})
	if typ != "" {
		options.WithType(jose.ContentType(typ))
	}
	key := jose.JSONWebKey{Key: s.private, KeyID: s.public.ID()}
	if embed {
		key.KeyID = ""
	}
	signer, err := jose.NewSigner(jose.SigningKey{Algorithm: jose.SignatureAlgorithm(s.public.Algorithm()), Key: key}, options)
	if err != nil {
		return "", fmt.Errorf("jose: sign: %w", err)
	}
	signed, err := signer.Sign(payload)
	if err != nil {
		return "", fmt.Errorf("jose: sign: %w", err)
	}
	text, err := signed.CompactSerialize()
	if err != nil {
		return "", fmt.Errorf("jose: sign: %w", err)
	}
	return text, nil
}
