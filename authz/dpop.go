package authz

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/behest-go/behest/grant"
	"github.com/behest-go/behest/internal/jose"
	"github.com/behest-go/behest/scope"
	"github.com/behest-go/behest/store"
)

// A DPoP verifies proofs that the sender of a request has a key (RFC 9449). Every proof has a nonce of the server's,
// which is good for five to six minutes on all servers with the same Key, and is taken once. Set the fields before the
// first request.
type DPoP struct {
	// Origin is the scheme, host and port by which clients reach the server, such as "https://social.example": what a
	// proof's htu is compared with, whatever the Host header says, so that it holds behind a proxy. The path is the
	// request's own (its RequestURI, which http.StripPrefix leaves alone): a proxy must not rewrite it. Required.
	Origin string
	Key    grant.Secret     // of the nonces, at least 32 bytes; the same on all servers. Required.
	Store  store.Store      // where the token endpoint keeps what it has taken. Required there.
	Now    func() time.Time // nil: time.Now
}

const (
	nonceStep = time.Minute
	nonceLife = 5                // steps
	proofSkew = 5 * time.Minute  // by which a client's clock may be wrong: the nonce says when
	maxProof  = 256              // bytes of a jti
	proofEnd  = 12 * time.Minute // from now on no proof can be good that is good now
)

const dpopNonce, useNonce, badProof = "DPoP-Nonce", "use_dpop_nonce", "invalid_dpop_proof"

// dpopAlgorithms is the parameter algs of a challenge.
var dpopAlgorithms = strings.Join(jose.Algorithms(), " ")

func proofFault(description string) error {
	return &fault{status: http.StatusBadRequest, code: badProof, description: description}
}

var errNonce = &fault{status: http.StatusBadRequest, code: useNonce, description: "the proof needs the nonce in DPoP-Nonce"}

func (d *DPoP) nonce(step int64) string {
	b := binary.BigEndian.AppendUint64(nil, uint64(step))
	mac := hmac.New(sha256.New, []byte(d.Key.Reveal()))
	mac.Write([]byte("behest dpop nonce"))
	mac.Write(b)
	return base64.RawURLEncoding.EncodeToString(append(b[4:], mac.Sum(nil)[:16]...))
}

// fresh reports whether the nonce is good, and whether it is time for another one. One of the next step is of a server
// whose clock is ahead.
func (d *DPoP) fresh(nonce string, now time.Time) (good, old bool) {
	step := now.Unix() / int64(nonceStep/time.Second)
	for i := step + 1; i >= step-nonceLife; i-- {
		if hmac.Equal([]byte(d.nonce(i)), []byte(nonce)) {
			return true, i < step
		}
	}
	return false, true
}

// offer gives the client the nonce for its next proof.
func (d *DPoP) offer(w http.ResponseWriter, now time.Time) {
	w.Header().Set(dpopNonce, d.nonce(now.Unix()/int64(nonceStep/time.Second)))
}

// A proof is one that was verified and not yet taken.
type proof struct{ key, id string }

// verify checks the proof of a request (RFC 9449 §4.3), with the access token that it goes with, if any. It offers a
// nonce where the proof has none, or an old one.
func (d *DPoP) verify(w http.ResponseWriter, r *http.Request, token string) (*proof, error) {
	header := r.Header.Values("DPoP")
	switch {
	case len(header) == 0:
		return nil, proofFault("a DPoP proof is required")
	case len(header) > 1:
		return nil, proofFault("more than one DPoP proof")
	}
	claims, key, err := (&jose.Rules{Types: []string{"dpop+jwt"}, Embedded: true}).EmbeddedClaims(header[0])
	if err != nil {
		return nil, proofFault("the proof is not a signed JWT of type dpop+jwt with its public key in it")
	}
	var htm, htu, nonce, ath string
	for name, into := range map[string]*string{"htm": &htm, "htu": &htu, "nonce": &nonce, "ath": &ath} {
		if _, err := claims.Get(name, into); err != nil {
			return nil, proofFault(name + " of the proof is not text")
		}
	}
	now := clock(d.Now)
	good, old := d.fresh(nonce, now)
	if old {
		d.offer(w, now)
	}
	path := r.RequestURI
	if !strings.HasPrefix(path, "/") {
		path = r.URL.EscapedPath()
	}
	want, ok := sameURL(d.Origin + path)
	got, valid := sameURL(htu)
	switch {
	case htm != r.Method:
		return nil, proofFault("htm of the proof is another method")
	case !ok || !valid || got != want:
		return nil, proofFault("htu of the proof is another URL")
	case claims.IssuedAt.IsZero(), claims.IssuedAt.Before(now.Add(-proofSkew)), claims.IssuedAt.After(now.Add(proofSkew)):
		return nil, proofFault("iat of the proof is not now")
	case !claims.Expires.IsZero() && !now.Before(claims.Expires), claims.NotBefore.After(now.Add(proofSkew)): // RFC 7519 §4.1.4, §4.1.5
		return nil, proofFault("the proof has expired, or is not good yet")
	case claims.ID == "" || len(claims.ID) > maxProof:
		return nil, proofFault("the proof needs a jti of 1 to 256 bytes")
	case token != "" && ath != hashToken(token):
		return nil, proofFault("ath of the proof is not of this token")
	case !good:
		return nil, errNonce
	}
	return &proof{key.Thumbprint(), claims.ID}, nil
}

func hashToken(token string) string {
	sum := sha256.Sum256([]byte(token))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// sameURL brings http URLs that mean the same into one form, without query and fragment (RFC 9449 §4.3, RFC 3986
// §6.2.2 and §6.2.3).
func sameURL(text string) (string, bool) {
	if len(text) > 4096 {
		return "", false
	}
	text, _, _ = strings.Cut(text, "#")
	text, _, _ = strings.Cut(text, "?")
	u, err := url.Parse(text)
	if err != nil || u.User != nil || u.Host == "" || u.Opaque != "" {
		return "", false
	}
	scheme, host, port := strings.ToLower(u.Scheme), strings.ToLower(u.Hostname()), u.Port()
	if scheme != "https" && scheme != "http" || host == "" {
		return "", false
	}
	if strings.Contains(host, ":") {
		host = "[" + host + "]"
	}
	if port != "" && !(scheme == "https" && port == "443" || scheme == "http" && port == "80") {
		host += ":" + port
	}
	path, ok := normalPath(u.EscapedPath())
	if !ok {
		return "", false
	}
	var out []string
	parts := strings.Split(strings.TrimPrefix(path, "/"), "/")
	for i, part := range parts { // §5.2.4
		last := i == len(parts)-1
		switch part {
		case ".":
		case "..":
			out = out[:max(len(out)-1, 0)]
		default:
			out = append(out, part)
			continue
		}
		if last {
			out = append(out, "")
		}
	}
	return scheme + "://" + host + "/" + strings.Join(out, "/"), true
}

// normalPath decodes what needs no encoding, and writes the rest in capitals.
func normalPath(path string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(path); i++ {
		if path[i] != '%' {
			b.WriteByte(path[i])
			continue
		}
		if i+2 >= len(path) {
			return "", false
		}
		text, err := url.PathUnescape(path[i : i+3])
		if err != nil || len(text) != 1 {
			return "", false
		}
		c := text[0]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
		} else {
			b.WriteString(strings.ToUpper(path[i : i+3]))
		}
		i += 2
	}
	return b.String(), true
}

// take uses the proof up at the token endpoint: where a token is used, the use takes it (see grant.Engine.UseBound).
func (d *DPoP) take(ctx context.Context, p *proof) error {
	now := clock(d.Now)
	sum := sha256.Sum256([]byte("dpop\x00" + p.key + "\x00" + p.id)) // an assertion's begins with a client's ID and has no such key
	out, err := d.Store.Apply(ctx, now, []store.Op{store.Put(store.Record{
		Kind: kindAssertion, ID: base64.RawURLEncoding.EncodeToString(sum[:]), NotAfter: now.Add(proofEnd),
	})})
	if err != nil {
		return fmt.Errorf("authz: storing the ID of a proof: %w", err)
	}
	if !out.Applied() {
		return proofFault("the proof was used before: its jti is not new")
	}
	return nil
}

// asked is what a guard needs for tokens that come with the scheme DPoP: itself with that scheme in its challenges.
func (v *Verifier) asked() (*Verifier, map[string]*answer) {
	if v.DPoP == nil {
		return nil, nil
	}
	bound := *v
	bound.scheme = "DPoP"
	return &bound, bound.fixedAnswers()
}

// prove is for grant.Engine.UseBound: only of a token that this server made is a proof looked at.
func (v *Verifier) prove(w http.ResponseWriter, r *http.Request, token string) func(string) (string, time.Time, error) {
	return func(key string) (string, time.Time, error) {
		if key == "" { // RFC 9449 §7.1: or a token that was stolen could be passed off as bound to the thief's key
			return "", time.Time{}, &fault{status: http.StatusUnauthorized, code: "invalid_token", description: "the token is not bound to a key: send it as Bearer"}
		}
		p, err := v.DPoP.verify(w, r, token)
		if err != nil {
			return "", time.Time{}, err
		}
		if p.key != key {
			return "", time.Time{}, &fault{status: http.StatusUnauthorized, code: "invalid_token", description: "the token is bound to another key"}
		}
		return p.id, clock(v.DPoP.Now).Add(proofEnd), nil
	}
}

// bound lets a request pass whose token is bound to a key.
func (v *Verifier) bound(w http.ResponseWriter, r *http.Request, fixed map[string]*answer, token string,
	resolve func(*http.Request) (scope.Scope, error), next http.Handler) {
	var want scope.Scope
	var unresolved error
	d, err := v.Engine.UseBound(r.Context(), token, v.prove(w, r, token), func() (scope.Scope, error) {
		want, unresolved = resolve(r)
		return want, unresolved
	})
	switch {
	case unresolved != nil:
		v.unresolved(r.Context(), w, unresolved)
	case err != nil:
		v.refuse(r.Context(), w, fixed, want, err)
	default:
		next.ServeHTTP(w, r.WithContext(&delegationContext{r.Context(), d}))
	}
}

// unproved answers for what is wrong with a proof, and reports whether it was that: 401 with a challenge (RFC 9449 §7.1).
func (v *Verifier) unproved(w http.ResponseWriter, err error) bool {
	var f *fault
	if errors.Is(err, grant.ErrLimited) { // nothing else is limited in a use
		err = proofFault("the proof was used before: its jti is not new")
	}
	if v.scheme == "" || !errors.As(err, &f) {
		return false
	}
	w.Header().Set("WWW-Authenticate", v.challenge(f.code, f.description, ""))
	writeError(w, http.StatusUnauthorized, f.code, f.description)
	return true
}
