// Package refusals holds the one table of what clients are told of an error, over HTTP and over gRPC alike:
//
//  1. A stranger gets one answer, whatever was wrong (P10).
//  2. The holder of a real token learns why it failed, in the words of grant.Reason.
//  3. 401 is for a token that is good for nothing here, 403 for one that is good for something else (RFC 6750 §3.1).
package refusals

import "net/http"

// The reasons that are no words of grant.Reason: those of who has no real token.
const (
	NoToken  = "no token"
	Stranger = ""
)

// A Refusal is what a client is told.
type Refusal struct {
	Status            int    // of HTTP: http.StatusUnauthorized or http.StatusForbidden
	Code, Description string // RFC 6750 §3
}

// Table is by reason. Nobody writes to it.
var Table = map[string]Refusal{
	NoToken:          {http.StatusUnauthorized, "invalid_token", "a delegation token is required"},
	Stranger:         {http.StatusUnauthorized, "invalid_token", "the token is not valid"},
	"expired":        {http.StatusUnauthorized, "invalid_token", "the token has expired"},
	"used_up":        {http.StatusUnauthorized, "invalid_token", "the token has no uses left"},
	"revoked":        {http.StatusUnauthorized, "invalid_token", "the token was revoked"},
	"wrong_domain":   {http.StatusForbidden, "insufficient_scope", "the token is for another domain"},
	"wrong_action":   {http.StatusForbidden, "insufficient_scope", "the token is for other actions"},
	"rights_changed": {http.StatusForbidden, "insufficient_scope", "the account may no longer do this here"},
}
