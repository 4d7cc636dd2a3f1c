package webhook

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"strings"
)

// A Key signs or verifies: a secret shared by both sides (v1), or one half of an Ed25519 pair (v1a). The zero Key
// does neither. It may be copied and used by many goroutines.
//
// A Key prints as its prefix and "[redacted]", whatever the verb, in JSON and in slog; a public key prints as it is.
// [Key.Reveal] gives the text.
type Key struct {
	// A function behind a pointer: fmt prints an address for it even where it may not call methods (an unexported
	// field of another struct), and so do dumpers that follow pointers, as those in test libraries do.
	get *func() material
}

type kind uint8

const (
	kindNone kind = iota
	kindHMAC
	kindPrivate
	kindPublic
)

var prefixes = [...]string{kindHMAC: "whsec_", kindPrivate: "whsk_", kindPublic: "whpk_"}

type material struct {
	kind  kind
	bytes []byte
}

func (m material) public() ed25519.PublicKey {
	if m.kind == kindPrivate {
		return ed25519.PublicKey(m.bytes[ed25519.SeedSize:])
	}
	return ed25519.PublicKey(m.bytes)
}

func newKey(k kind, b []byte) Key {
	m := material{k, b}
	get := func() material { return m }
	return Key{&get}
}

func (k Key) material() material {
	if k.get == nil {
		return material{}
	}
	return (*k.get)()
}

// NewSecret makes a random shared secret of 32 bytes: "whsec_…", for v1.
func NewSecret() Key {
	b := make([]byte, 32)
	_, _ = rand.Read(b) // never fails: crypto/rand ends the program instead
	return newKey(kindHMAC, b)
}

// NewSigningKey makes a random Ed25519 private key: "whsk_…", for v1a. The receiver gets its [Key.Public].
func NewSigningKey() Key {
	seed := make([]byte, ed25519.SeedSize)
	_, _ = rand.Read(seed)
	return newKey(kindPrivate, ed25519.NewKeyFromSeed(seed))
}

// ParseKey reads the text of a key: "whsec_", "whsk_" or "whpk_" and padded standard base64. Errors wrap [ErrKey]
// and quote nothing of the text.
func ParseKey(text string) (Key, error) {
	for k := kindHMAC; k <= kindPublic; k++ {
		encoded, ok := strings.CutPrefix(text, prefixes[k])
		if !ok {
			continue
		}
		if len(encoded) > 88 { // 64 bytes, the longest of all
			return Key{}, fmt.Errorf("%w: too long after %s", ErrKey, prefixes[k])
		}
		b, err := base64.StdEncoding.Strict().DecodeString(encoded)
		// The decoder passes over line ends, and one key would have many texts.
		if err != nil || strings.ContainsAny(encoded, "\r\n") {
			return Key{}, fmt.Errorf("%w: not padded standard base64 after %s", ErrKey, prefixes[k])
		}
		return fromBytes(k, b)
	}
	return Key{}, fmt.Errorf("%w: the text begins with none of whsec_, whsk_, whpk_", ErrKey)
}

func fromBytes(k kind, b []byte) (Key, error) {
	switch {
	case k == kindHMAC && len(b) >= 24 && len(b) <= 64:
		return newKey(k, b), nil
	case k == kindHMAC:
		return Key{}, fmt.Errorf("%w: whsec_ holds 24 to 64 bytes, not %d", ErrKey, len(b))
	case k == kindPrivate && len(b) == ed25519.SeedSize:
		return newKey(k, ed25519.NewKeyFromSeed(b)), nil
	case k == kindPrivate && len(b) == ed25519.PrivateKeySize:
		full := ed25519.NewKeyFromSeed(b[:ed25519.SeedSize])
		if !bytes.Equal(full, b) {
			return Key{}, fmt.Errorf("%w: the halves of whsk_ do not belong together", ErrKey)
		}
		return newKey(k, full), nil
	case k == kindPublic && len(b) == ed25519.PublicKeySize:
		if lowOrder(b) {
			return Key{}, fmt.Errorf("%w: whpk_ is a point of low order, for which anyone can sign", ErrKey)
		}
		return newKey(k, b), nil
	}
	return Key{}, fmt.Errorf("%w: %s holds the wrong number of bytes, %d", ErrKey, prefixes[k], len(b))
}

// lowOrder tells whether b encodes one of the points of order 1, 2, 4 or 8, the bytes of a forgotten all-zero key
// among them. The sign bit is left aside.
func lowOrder(b []byte) bool {
	masked := bytes.Clone(b)
	masked[31] &= 0x7f
	for _, p := range lowOrderPoints {
		if bytes.Equal(masked, p[:]) {
			return true
		}
	}
	return false
}

var lowOrderPoints = [...][32]byte{
	{},
	{1},
	{0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0,
		0xd5, 0xdf, 0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05},
	{0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f,
		0x2a, 0x20, 0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a},
	fieldEdge(0xec), fieldEdge(0xed), fieldEdge(0xee), // p-1, and p and p+1 for 0 and 1
}

// fieldEdge is the number 2^255 - 256 + low, little-endian.
func fieldEdge(low byte) (p [32]byte) {
	for i := range p {
		p[i] = 0xff
	}
	p[0], p[31] = low, 0x7f
	return p
}

// IsZero reports whether k is the zero Key.
func (k Key) IsZero() bool { return k.get == nil }

// Public returns what a receiver needs to verify what k signs: the public half of an Ed25519 key. For a shared secret,
// which has no public half, and the zero Key it returns the zero Key.
func (k Key) Public() Key {
	switch m := k.material(); m.kind {
	case kindPrivate, kindPublic:
		return newKey(kindPublic, bytes.Clone(m.public()))
	}
	return Key{}
}

// Reveal returns the key as text that [ParseKey] takes, secret and all: to hand it to the other side or to store it
// sealed. The zero Key gives "".
func (k Key) Reveal() string {
	m := k.material()
	b := m.bytes
	switch m.kind {
	case kindNone:
		return ""
	case kindPrivate:
		b = b[:ed25519.SeedSize]
	}
	return prefixes[m.kind] + base64.StdEncoding.EncodeToString(b)
}

// String returns the prefix and "[redacted]", the whole text of a public key, or "" for the zero Key.
func (k Key) String() string {
	switch m := k.material(); m.kind {
	case kindNone:
		return ""
	case kindPublic:
		return k.Reveal()
	default:
		return prefixes[m.kind] + "[redacted]"
	}
}

// Format implements [fmt.Formatter]: every verb prints what [Key.String] returns.
func (k Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, k.String()) }

// LogValue implements [slog.LogValuer] with [Key.String].
func (k Key) LogValue() slog.Value { return slog.StringValue(k.String()) }

// MarshalText implements [encoding.TextMarshaler], and so JSON, with [Key.String]: a secret is not written, and what
// is written in its place does not parse.
func (k Key) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler] by [ParseKey], for keys in configuration files. Empty text gives
// the zero Key.
func (k *Key) UnmarshalText(text []byte) error {
	if len(text) == 0 {
		*k = Key{}
		return nil
	}
	parsed, err := ParseKey(string(text))
	if err != nil {
		return err
	}
	*k = parsed
	return nil
}
