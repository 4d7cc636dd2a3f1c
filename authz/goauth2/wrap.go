package goauth2

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"

	"github.com/go-oauth2/oauth2/v4/server"

	"github.com/behest-go/behest/authz"
)

// grantTypes are Behest's. The rest is go-oauth2's to answer.
var grantTypes = [...]string{authz.GrantTypeOperation, "urn:ietf:params:oauth:grant-type:token-exchange"}

// maxPeek is how much of a body is looked at: more than Behest's token endpoint takes.
const maxPeek = 64<<10 + 1

// Wrap returns the token endpoint of srv with Behest's grants added: a POST whose grant_type is
// [authz.GrantTypeOperation] or token exchange (RFC 8693) is answered by az, anything else by srv.HandleTokenRequest,
// hooks and all, from a request that has not been touched. Mount it where the token endpoint of srv is; that of
// az.Routes answers the same apps, but for Behest's grants alone.
//
// Behest's grants authenticate the apps of az; see the package comment. Wrap also puts itself before srv.Manager, so
// that a delegation token or a code of Behest is no token and no code to srv (see [Show]), whatever its stores say.
// Call it before srv serves. It may be called before or after [Harden].
func Wrap(srv *server.Server, az *authz.Server) http.Handler {
	srv.Manager = apart(srv.Manager)
	var ours http.Handler
	az.Routes(func(_ string, h http.Handler) {
		if t, ok := h.(*authz.TokenEndpoint); ok {
			ours = t
		}
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if isOurs(r) {
			ours.ServeHTTP(w, r)
			return
		}
		if err := srv.HandleTokenRequest(w, r); err != nil { // a hook's, or that of writing the answer
			http.Error(w, `{"error":"server_error"}`, http.StatusInternalServerError)
		}
	})
}

// isOurs looks for the grant_type in a form that was parsed before, or in the beginning of the body, and leaves the
// request as it was.
func isOurs(r *http.Request) bool {
	if r.Method != http.MethodPost {
		return false
	}
	form := r.PostForm
	if form == nil && r.Body != nil {
		if media, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); media != "application/x-www-form-urlencoded" {
			return false
		}
		head, err := io.ReadAll(io.LimitReader(r.Body, maxPeek))
		rest := io.Reader(r.Body)
		if err != nil {
			rest = failing{err}
		}
		r.Body = body{io.MultiReader(bytes.NewReader(head), rest), r.Body}
		form, _ = url.ParseQuery(string(head)) // what is malformed is for whoever answers to say
	}
	return slices.ContainsFunc(form["grant_type"], func(name string) bool { return slices.Contains(grantTypes[:], name) })
}

// body is what was read, and what is left to read.
type body struct {
	io.Reader
	io.Closer
}

type failing struct{ err error }

func (f failing) Read([]byte) (int, error) { return 0, f.err }
