package authz

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/behest-go/behest/store"
)

// A SignIn is an app that an account is signed in to, in one browser or on one device: see Signing in, in the package
// comment.
type SignIn struct {
	App   string
	Since time.Time // when the account agreed
	// Used is when the app last got tokens: it asks for new ones while it is in use.
	Used time.Time
	// NotAfter is when the sign-in ends, unless it is used before.
	NotAfter time.Time
	Profile  bool // the app sees the account's own name
}

// SignIns returns what the account is signed in to, of the latest first, at most 1000. Codes that wait are none yet.
func (s *Server) SignIns(ctx context.Context, account string) ([]SignIn, error) {
	aggregate, _, _ := s.engine.SignInRecords(account, "")
	found, err := s.store.List(ctx, store.Query{Kind: kindSignIn, Prefix: aggregate + ".", Limit: store.MaxPage})
	if err != nil {
		return nil, fmt.Errorf("authz: listing sign-ins: %w", err)
	}
	var out []SignIn
	all, now := &signIns{engine: s.engine, store: s.store}, clock(s.now)
	for _, r := range found {
		k := &kept{Record: r}
		if err := json.Unmarshal(r.Data, &k.signIn); err != nil {
			return nil, fmt.Errorf("authz: record %s %s: %w", r.Kind, r.ID, err)
		}
		if k.Redeemed == 0 || !now.Before(r.NotAfter) {
			continue
		}
		switch err := all.holds(ctx, k); {
		case errors.Is(err, errNoSignIn):
			continue
		case err != nil:
			return nil, err
		}
		out = append(out, SignIn{App: r.App, Since: time.UnixMicro(k.At).UTC(), Used: time.UnixMicro(k.Used).UTC(), NotAfter: r.NotAfter, Profile: k.Scope == scopeProfile})
	}
	slices.SortFunc(out, func(a, b SignIn) int { return cmp.Or(b.Since.Compare(a.Since), cmp.Compare(a.App, b.App)) })
	return out, nil
}

// SignOut ends all sign-ins of the account at the app, on all its devices, and none of its grants. One write, which holds
// on every node when the call returns. To end everything, grants as well, is grant.Engine.RevokeAccount.
func (s *Server) SignOut(ctx context.Context, account, app string) error {
	return s.engine.RevokeSignIns(ctx, account, app)
}
