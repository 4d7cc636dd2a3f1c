package app

import (
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// What a server's refusal can be, for [errors.Is] with an [*Error].
var (
	ErrInvalidGrant  = errors.New("app: the code is not, or no longer, good")               // error "invalid_grant" of a redemption
	ErrExpired       = errors.New("app: the token has expired")                             // error_reason "expired"
	ErrUsedUp        = errors.New("app: the token's uses are spent")                        // error_reason "used_up"
	ErrRevoked       = errors.New("app: the token was revoked")                             // error_reason "revoked"
	ErrWrongDomain   = errors.New("app: the token is for another domain")                   // error_reason "wrong_domain"
	ErrWrongAction   = errors.New("app: the token is for other actions")                    // error_reason "wrong_action"
	ErrRightsChanged = errors.New("app: the user may not do this here any more")            // error_reason "rights_changed"
	ErrProtocol      = errors.New("app: the server's answer is not what the protocol says") // not JSON, too large, without what is required
	ErrCallback      = errors.New("app: not a callback of this issuer")                     // see [Client.Callback]
)

var byReason = map[string]error{
	"expired": ErrExpired, "used_up": ErrUsedUp, "revoked": ErrRevoked,
	"wrong_domain": ErrWrongDomain, "wrong_action": ErrWrongAction, "rights_changed": ErrRightsChanged,
}

// An Error is an answer of the server that is not a success. Its texts are the server's, bounded and without control
// characters.
type Error struct {
	Status      int           // the HTTP status; 0 for an error that came with a callback
	Code        string        // "error" of RFC 6749 §5.2 or RFC 6750 §3.1, such as "invalid_grant"; "" if there was none
	Description string        // "error_description", for developers; may be ""
	Reason      string        // "error_reason": why a real token was refused; "" if there was none
	RetryAfter  time.Duration // how long to wait, at most 24 hours; 0: the server did not say
}

// Error implements error.
func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("app: the server refused:")
	if e.Status != 0 {
		fmt.Fprintf(&b, " %d", e.Status)
	}
	if e.Code != "" {
		b.WriteString(" " + e.Code)
	}
	if e.Reason != "" {
		b.WriteString(" (" + e.Reason + ")")
	}
	if e.Description != "" {
		b.WriteString(": " + e.Description)
	}
	return b.String()
}

// Is makes [errors.Is] true for the sentinel of the Reason, and for [ErrInvalidGrant] by the Code.
func (e *Error) Is(target error) bool {
	if target == ErrInvalidGrant {
		return e.Code == "invalid_grant"
	}
	sentinel, ok := byReason[e.Reason]
	return ok && sentinel == target
}

// refusal makes an Error of an answer, whose body has been read. A body that is no JSON says nothing.
func refusal(resp *http.Response, body []byte) *Error {
	e := &Error{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}
	var wire struct {
		Code        string `json:"error"`
		Description string `json:"error_description"`
		Reason      string `json:"error_reason"`
	}
	if isJSON(resp.Header) && json.Unmarshal(body, &wire) == nil {
		e.Code, e.Description, e.Reason = clean(wire.Code, 64), clean(wire.Description, 512), clean(wire.Reason, 64)
	}
	return e
}

// clean keeps text fit for a log line: what RFC 6749 §5.2 allows there, and at most limit bytes.
func clean(s string, limit int) string {
	if len(s) > limit {
		s = s[:limit]
	}
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' || r == '"' || r == '\\' {
			return '?'
		}
		return r
	}, s)
}

func isJSON(h http.Header) bool {
	media, _, err := mime.ParseMediaType(h.Get("Content-Type"))
	return err == nil && media == "application/json"
}

// retryAfter reads RFC 9110 §10.2.3: seconds, or a date, which is taken relative to the answer's own Date.
func retryAfter(h http.Header) time.Duration {
	const most = 24 * time.Hour
	v := h.Get("Retry-After")
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, most)
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(date), 0), most)
}
