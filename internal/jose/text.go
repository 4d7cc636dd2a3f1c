package jose

import (
	"encoding/base64"
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/go-jose/go-jose/v4/json"
)

var encoding = base64.RawURLEncoding.Strict()

var errBase64 = errors.New("not base64url")

// decode64 takes the one way in which base64url can be written (RFC 7515 §2).
func decode64(text string) ([]byte, error) {
	if strings.ContainsAny(text, "\r\n") { // which DecodeString would skip
		return nil, errBase64
	}
	raw, err := encoding.DecodeString(text)
	if err != nil {
		return nil, errBase64
	}
	return raw, nil
}

// object reads an object in which no member is there twice, at any depth, and names are compared as they stand.
func object(text []byte) (map[string]json.RawMessage, error) {
	if !utf8.Valid(text) {
		return nil, invalid("text that is not UTF-8")
	}
	// Only into an interface it looks at all depths for what is there twice.
	var all any
	if err := json.Unmarshal(text, &all); err != nil {
		return nil, invalid("malformed JSON, or a member twice")
	}
	if _, ok := all.(map[string]any); !ok {
		return nil, invalid("JSON that is not an object")
	}
	var members map[string]json.RawMessage
	if err := json.Unmarshal(text, &members); err != nil {
		return nil, invalid("malformed JSON")
	}
	return members, nil
}

// text reads a string that is not empty.
func text(raw json.RawMessage) (string, bool) {
	var s *string
	if json.Unmarshal(raw, &s) != nil || s == nil || *s == "" {
		return "", false
	}
	return *s, true
}
