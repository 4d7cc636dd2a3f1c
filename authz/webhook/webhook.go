// Package webhook signs and verifies webhooks as Standard Webhooks says (https://www.standardwebhooks.com):
// the social server signs with it, the app verifies with it. It imports the standard library only.
//
// The laws:
//
//  1. What is signed is the id, the time and the body, byte for byte. A body is to be verified before it is parsed.
//  2. A signature holds for [Tolerance] before and after its time. Within that span a copy verifies as well as
//     the original: who receives must remember the ids (as authz/app does).
//  3. Any one good signature by any one key is enough, so keys rotate: add the new key at the receiver, change the
//     sender, remove the old key.
//  4. Nothing secret is printed: a [Key] redacts itself in fmt, JSON and slog, and errors quote nothing of what was received.
//  5. The clock is an argument.
//
// Format: three headers,
//
//	webhook-id:        1 to 128 visible ASCII characters without "."; the same for each try of one message
//	webhook-timestamp: seconds since 1970, of this try
//	webhook-signature: one or more, with a space between: "v1,<base64>" is HMAC-SHA256, "v1a,<base64>" is Ed25519,
//	                   each over id "." timestamp "." body
//
// and keys as text, by prefix: "whsec_" and the base64 of 24 to 64 bytes is a shared secret (v1); "whsk_" and the
// base64 of an Ed25519 private key (a seed of 32 bytes, or 64 bytes) signs, "whpk_" and that of its public key
// verifies (v1a). testdata/vectors.json has examples of all of it for other languages.
//
// Use:
//
//	key, err := webhook.ParseKey(os.Getenv("WEBHOOK_SECRET"))
//	err = webhook.Sign(req.Header, "msg_1", time.Now(), body, key) // the sender
//	id, err := webhook.Verify(req.Header, body, time.Now(), key)   // the receiver
//	if err != nil {
//		http.Error(w, "signature refused", http.StatusUnauthorized)
//	}
package webhook

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// Tolerance is how far a timestamp may lie before or after the receiver's clock.
const Tolerance = 5 * time.Minute

// The headers of a signed webhook, in the canonical form of [http.Header].
const (
	HeaderID        = "Webhook-Id"
	HeaderTimestamp = "Webhook-Timestamp"
	HeaderSignature = "Webhook-Signature"
)

// Bounds on what a stranger can make a receiver do: at most maxSignatures are looked at, each by the keys of its kind.
const (
	maxID         = 128
	maxSignatures = 16
	maxHeader     = maxSignatures * 100 // the longest signature, "v1a," and 88 characters, with its space
)

// Errors of this package. Test for them with [errors.Is].
var (
	// ErrRefused is wrapped by every error of [Verify] that is about the message. A receiver answers all of them alike.
	ErrRefused = errors.New("webhook: refused")
	// ErrHeader: a header is missing, repeated or malformed. It wraps [ErrRefused].
	ErrHeader = fmt.Errorf("%w: bad header", ErrRefused)
	// ErrTimestamp: the timestamp is further from now than [Tolerance]. It wraps [ErrRefused].
	ErrTimestamp = fmt.Errorf("%w: timestamp too far from now", ErrRefused)
	// ErrSignature: none of the signatures is by one of the keys. It wraps [ErrRefused].
	ErrSignature = fmt.Errorf("%w: no signature by a known key", ErrRefused)
	// ErrID: [Sign] was given an id that no receiver would take.
	ErrID = errors.New("webhook: an id is 1 to 128 visible ASCII characters without \".\"")
	// ErrKey: a key's text is malformed, or the keys given cannot do what is asked: none at all, a zero [Key],
	// a public key to sign with, or more than 16.
	ErrKey = errors.New("webhook: unusable key")
)

// Sign sets the three headers in h: the id, the time of this try and one signature per key, in the order of the keys.
// Headers of those names that were there are replaced. Keep the id for each further try of the same message, and
// sign each try anew. Errors wrap [ErrID] or [ErrKey], or say that the time lies before 1970; h is then untouched.
func Sign(h http.Header, id string, at time.Time, body []byte, keys ...Key) error {
	if !validID(id) {
		return ErrID
	}
	if at.Unix() < 0 {
		return errors.New("webhook: a timestamp lies after 1970")
	}
	if len(keys) == 0 || len(keys) > maxSignatures {
		return fmt.Errorf("%w: %d keys to sign with, want 1 to %d", ErrKey, len(keys), maxSignatures)
	}
	timestamp := strconv.FormatInt(at.Unix(), 10)
	text := signed(id, timestamp, body)
	var out strings.Builder
	for i, key := range keys {
		m := key.material()
		var version string
		var sig []byte
		switch m.kind {
		case kindHMAC:
			version, sig = "v1,", mac(m.bytes, text)
		case kindPrivate:
			version, sig = "v1a,", ed25519.Sign(ed25519.PrivateKey(m.bytes), text)
		default:
			return fmt.Errorf("%w: key %d cannot sign", ErrKey, i+1)
		}
		if i > 0 {
			out.WriteByte(' ')
		}
		out.WriteString(version)
		out.WriteString(base64.StdEncoding.EncodeToString(sig))
	}
	h.Set(HeaderID, id)
	h.Set(HeaderTimestamp, timestamp)
	h.Set(HeaderSignature, out.String())
	return nil
}

// Verify returns the id of the message if one of its signatures is by one of the keys and its timestamp is within
// [Tolerance] of now. The body is all of the body as received. Signatures of versions that it does not know, and
// malformed ones, are passed over; at most 16 signatures are taken.
//
// Errors wrap [ErrRefused] ([ErrHeader], [ErrTimestamp], [ErrSignature]) when the message is at fault, and [ErrKey]
// when the keys are: the caller's configuration. The time it takes depends on no secret.
func Verify(h http.Header, body []byte, now time.Time, keys ...Key) (id string, err error) {
	if len(keys) == 0 || len(keys) > maxSignatures {
		return "", fmt.Errorf("%w: %d keys to verify with, want 1 to %d", ErrKey, len(keys), maxSignatures)
	}
	for i, key := range keys {
		if key.IsZero() {
			return "", fmt.Errorf("%w: key %d is zero", ErrKey, i+1)
		}
	}
	id, okID := single(h, HeaderID, maxID)
	timestamp, okTime := single(h, HeaderTimestamp, 12)
	signatures, okSig := single(h, HeaderSignature, maxHeader)
	if !okID || !okTime || !okSig || !validID(id) {
		return "", ErrHeader
	}
	seconds, ok := parseSeconds(timestamp)
	if !ok {
		return "", ErrHeader
	}
	// Whole seconds are compared, since the header has no others.
	if d := now.Unix() - seconds; d > int64(Tolerance/time.Second) || d < -int64(Tolerance/time.Second) {
		return "", ErrTimestamp
	}
	text := signed(id, timestamp, body)
	// The HMAC of the text is the same for every signature that is tried, so it is made once a key.
	macs := make([][]byte, len(keys))
	taken := 0
	for one := range strings.SplitSeq(signatures, " ") {
		version, encoded, _ := strings.Cut(one, ",")
		if version != "v1" && version != "v1a" {
			continue
		}
		if taken++; taken > maxSignatures {
			return "", ErrHeader
		}
		sig, err := base64.StdEncoding.Strict().DecodeString(encoded)
		if err != nil {
			continue
		}
		for i, key := range keys {
			m := key.material()
			switch {
			case version == "v1" && m.kind == kindHMAC:
				if macs[i] == nil {
					macs[i] = mac(m.bytes, text)
				}
				if hmac.Equal(macs[i], sig) {
					return id, nil
				}
			case version == "v1a" && m.kind != kindHMAC && len(sig) == ed25519.SignatureSize:
				if ed25519.Verify(m.public(), text, sig) {
					return id, nil
				}
			}
		}
	}
	return "", ErrSignature
}

// signed is what a signature is over. It cannot be cut in two ways: neither id nor timestamp has a ".".
func signed(id, timestamp string, body []byte) []byte {
	text := make([]byte, 0, len(id)+len(timestamp)+len(body)+2)
	text = append(text, id...)
	text = append(text, '.')
	text = append(text, timestamp...)
	text = append(text, '.')
	return append(text, body...)
}

func mac(secret, text []byte) []byte {
	h := hmac.New(sha256.New, secret)
	h.Write(text)
	return h.Sum(nil)
}

// single returns the header's value if it is there exactly once: of two, another reader may take the other one.
func single(h http.Header, name string, limit int) (string, bool) {
	values := h.Values(name)
	if len(values) != 1 || values[0] == "" || len(values[0]) > limit {
		return "", false
	}
	return values[0], true
}

func validID(id string) bool {
	if id == "" || len(id) > maxID {
		return false
	}
	for i := range len(id) {
		if c := id[i]; c <= ' ' || c > '~' || c == '.' {
			return false
		}
	}
	return true
}

// parseSeconds takes the one form that Sign writes: digits without sign or leading zero.
func parseSeconds(s string) (int64, bool) {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0, false
		}
	}
	if len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
