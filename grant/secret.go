package grant

import (
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// A Secret holds a code, a token, a client secret or a key, and shows none of it: fmt, encoding/json and slog
// print "[redacted]", also when it sits deep inside another value. Only Reveal gives it out. The zero value is "no secret".
type Secret struct {
	text *string // a pointer, because fmt prints unexported fields of others without asking their methods
}

// NewSecret returns a Secret that holds text, byte for byte. An empty text gives the zero Secret.
func NewSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{&text}
}

// Reveal returns what the Secret holds.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// IsZero reports whether there is no secret.
func (s Secret) IsZero() bool { return s.text == nil }

// Equal compares in a time that does not depend on the contents or their lengths. Two zero Secrets are not equal: the
// lack of a secret opens nothing.
func (s Secret) Equal(text string) bool {
	a, b := sha256.Sum256([]byte(s.Reveal())), sha256.Sum256([]byte(text))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1 && !s.IsZero()
}

// String returns "[redacted]", or nothing for the zero Secret.
func (s Secret) String() string {
	if s.IsZero() {
		return ""
	}
	return redacted
}

// Format prints what String returns, whatever the verb.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalText returns what String returns, for encoding/json and its like.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns what String returns.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
