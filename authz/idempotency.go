package authz

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Limits of requests with an Idempotency-Key (draft-ietf-httpapi-idempotency-key-header).
const (
	maxIdempotencyKey = 255     // bytes of the key
	maxFingerprinted  = 1 << 20 // bytes of the request's body; more are a 413
	maxRecorded       = 64 << 10
	maxRecordedHeader = 8 << 10 // bytes of the names and values that the handler set
	maxRetryAfter     = time.Minute
)

const idempotencyKey = "Idempotency-Key"

// idempotency reads the key and, if there is one, the whole request, which it leaves to be read again.
func idempotency(w http.ResponseWriter, r *http.Request) (key string, request [32]byte, keyed bool, malformed *fault) {
	fail := func(status int, description string) (string, [32]byte, bool, *fault) {
		return "", [32]byte{}, true, &fault{status: status, code: "invalid_request", description: description}
	}
	values, keyed := r.Header[idempotencyKey]
	if !keyed {
		return "", request, false, nil
	}
	if len(values) != 1 {
		return fail(http.StatusBadRequest, "more than one Idempotency-Key header")
	}
	key, ok := parseIdempotencyKey(values[0])
	if !ok {
		return fail(http.StatusBadRequest, fmt.Sprintf("the Idempotency-Key is not a quoted string of 1 to %d characters", maxIdempotencyKey))
	}
	var body []byte
	if r.Body != nil && r.Body != http.NoBody {
		var err error
		body, err = io.ReadAll(http.MaxBytesReader(w, r.Body, maxFingerprinted))
		var large *http.MaxBytesError
		switch {
		case errors.As(err, &large):
			return fail(http.StatusRequestEntityTooLarge, fmt.Sprintf("with an Idempotency-Key, a body has at most %d bytes", min(maxFingerprinted, large.Limit)))
		case err != nil:
			return fail(http.StatusBadRequest, "the body ends early")
		}
		r.Body = io.NopCloser(bytes.NewReader(body))
	}
	return key, fingerprint(r, body), true, nil
}

// parseIdempotencyKey takes the item of the draft's section 2.1: a string of RFC 8941 §3.3.3, without parameters. What
// many clients send, the same characters without quotes, is the same key, if there is no space, quote, comma or
// semicolon in it.
func parseIdempotencyKey(value string) (key string, ok bool) {
	value = strings.Trim(value, " ") // RFC 8941 §4.2
	inner, quoted := strings.CutPrefix(value, `"`)
	if quoted {
		if inner, quoted = strings.CutSuffix(inner, `"`); !quoted {
			return "", false
		}
	}
	b := make([]byte, 0, len(inner))
	for i := 0; i < len(inner); i++ {
		c := inner[i]
		switch {
		case c < ' ' || c > '~':
			return "", false
		case !quoted && strings.IndexByte(` ",;\`, c) >= 0:
			return "", false
		case c == '"':
			return "", false
		case c == '\\':
			if i++; i == len(inner) || inner[i] != '"' && inner[i] != '\\' {
				return "", false
			}
			c = inner[i]
		}
		b = append(b, c)
	}
	return string(b), 1 <= len(b) && len(b) <= maxIdempotencyKey
}

// fingerprint is what makes a request the same: method, URL and body. The URL is the one that was asked for, whatever
// was stripped from it since, without the host: one node may be known by another name than the next.
func fingerprint(r *http.Request, body []byte) (sum [32]byte) {
	target := r.RequestURI
	if !strings.HasPrefix(target, "/") { // a request that no server has read, or one to a proxy (RFC 9112 §3.2.2)
		target = r.URL.RequestURI()
	}
	h := sha256.New()
	for _, part := range [...]string{r.Method, target} {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(len(part))))
		_, _ = io.WriteString(h, part)
	}
	h.Write(body)
	h.Sum(sum[:0])
	return sum
}

// recordedHead is the first line of a recorded answer; the rest is its body.
type recordedHead struct {
	Status int         `json:"status"`
	Header http.Header `json:"header,omitempty"`
}

// recorded is the answer as it is kept; nil: its header is too large for that. Of the header, it is what the handler
// has set: what stands around it is set around a retry, too.
func (x *exchange) recorded() []byte {
	kept, size := http.Header{}, 0
	for name, values := range x.header {
		if notRecorded[name] || strings.HasPrefix(name, http.TrailerPrefix) || slices.Equal(values, x.before[name]) {
			continue
		}
		kept[name] = values
		for _, v := range values {
			size += len(name) + len(v)
		}
	}
	head, err := json.Marshal(recordedHead{x.status, kept})
	if err != nil || size > maxRecordedHeader {
		return nil
	}
	return append(append(head, '\n'), x.body...)
}

// notRecorded are headers of one message or one connection (RFC 9110 §7.6.1), and cookies, which are no answer to keep.
var notRecorded = map[string]bool{"Connection": true, "Keep-Alive": true, "Proxy-Connection": true, "Transfer-Encoding": true, "Te": true,
	"Trailer": true, "Upgrade": true, "Date": true, "Set-Cookie": true}

// replay answers as was answered before.
func replay(w http.ResponseWriter, answer []byte) error {
	head, body, ok := bytes.Cut(answer, []byte("\n"))
	var said recordedHead
	if err := json.Unmarshal(head, &said); err != nil || !ok || said.Status < 200 || said.Status > 999 {
		return errors.New("a recorded answer is not whole")
	}
	h := w.Header()
	for name, values := range said.Header {
		h[name] = values
	}
	h.Set("Idempotency-Replayed", "true")
	w.WriteHeader(said.Status)
	_, _ = w.Write(body) // an error means that nobody is there any more
	return nil
}

// repeat answers a request whose key was used before (section 2.7 of the draft), by what grant.Delegation.Repeat says.
func (v *Verifier) repeat(w http.ResponseWriter, state string, age time.Duration, answer []byte) error {
	const code, reason = "invalid_request", "error_reason"
	switch {
	case state == "other":
		writeError(w, http.StatusUnprocessableEntity, code, "the Idempotency-Key was used for another request", reason, "key_reused")
	case state == "open":
		// The longer it takes, the less often one should ask. It may also be that its server has died.
		wait := min(max(age, time.Second), maxRetryAfter)
		w.Header().Set("Retry-After", strconv.Itoa(int(wait/time.Second)))
		writeError(w, http.StatusConflict, code, "a request with this Idempotency-Key is in flight, or its outcome is lost", reason, "key_in_flight")
	case answer == nil:
		writeError(w, http.StatusConflict, code, "the request was carried out before, and its answer is not kept", reason, "answer_not_kept")
	default:
		return replay(w, answer)
	}
	return nil
}
