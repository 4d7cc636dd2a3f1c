package app

import (
	"fmt"
	"time"

	"golang.org/x/oauth2"

	"github.com/behest-go/behest/scope"
)

// A Token is a delegation token: the right to act as one account, in one domain, for some actions, for some time and
// some uses. It is valid until the server says otherwise: the user may revoke it or lose the right at any moment.
type Token struct {
	AccessToken Secret
	Type        string       // "DPoP": bound to the key of [Client.DPoP]; else Bearer
	GrantID     string       // the grant that it is of
	Account     string       // whom it acts as, by the name that this app knows them by
	Domain      scope.Domain // where
	Scope       scope.Set    // what it allows
	Uses        int64        // how often; 0: not counted
	Expiry      time.Time    // until when, by this app's clock
	Event       Event        // why, if the code came through the user's client; else the Grant has it and this is zero

	now func() time.Time
}

// OAuth2 returns the token for golang.org/x/oauth2, with the extras grant_id, domain and sub. It has no refresh token. Unlike
// a Token, what it returns does print its secret, and the clients of that package follow redirects with it and send it to
// any host that they are asked to call: see [Client.Do].
func (t *Token) OAuth2() *oauth2.Token {
	out := &oauth2.Token{AccessToken: t.AccessToken.Reveal(), TokenType: "Bearer", Expiry: t.Expiry}
	if t.Type == dpop {
		out.TokenType = dpop // which that package's clients send without a proof: refused
	}
	return out.WithExtra(map[string]any{
		"grant_id": t.GrantID, "domain": t.Domain.String(), "sub": t.Account, "scope": t.Scope.String(),
	})
}

// TokenSource returns a source of the one token, for golang.org/x/oauth2. It does not refresh, since only the user can
// cause another token: from Expiry on it gives an error that wraps [ErrExpired].
func (t *Token) TokenSource() oauth2.TokenSource {
	copied := *t
	return source{&copied}
}

type source struct{ t *Token }

func (s source) Token() (*oauth2.Token, error) {
	now := time.Now
	if s.t.now != nil {
		now = s.t.now
	}
	if !s.t.Expiry.IsZero() && !now().Before(s.t.Expiry) {
		return nil, fmt.Errorf("%w: it was good until %s", ErrExpired, s.t.Expiry.UTC().Format(time.RFC3339))
	}
	return s.t.OAuth2(), nil
}
