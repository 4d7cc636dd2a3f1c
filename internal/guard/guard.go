// Package guard posts webhooks to addresses that strangers chose, without letting them reach what is not theirs.
//
// The laws:
//
//  1. The address is judged after DNS, in the dialer, for the very address that is connected to: what a name
//     resolved to a moment ago does not count. Everything outside the public unicast space is refused.
//  2. What the operator allowed by name is not judged: "host" or "host:port" as written in the URL, never an address
//     that some other name resolves to.
//  3. https only, but for hosts allowed by name. Ports of strangers' hosts are 443 or from 1024 up.
//  4. An answer is a status and a Retry-After. Headers and body are bounded, and neither they nor anything else the
//     far side sent is in an error; nor is the URL's path, query or userinfo.
//  5. No redirect is followed (a 3xx is an answer like any other), no proxy of the environment is used, no cookie is
//     kept. A connection is used again only for the same scheme, host and port as written, so for the same judgement.
//     (What a server sends unasked on such a connection, net/http reports, quoted, to the standard logger; it is dropped.)
//
// Format: none of its own. The table of prefixes in prefixes.go follows the IANA special-purpose registries.
//
// Use:
//
//	g, err := guard.New(guard.Options{Allow: []string{"hooks.internal:8443"}})
//	defer g.Close()
//	err = g.CheckURL(app.Webhook) // when the app is registered
//	answer, err := g.Post(ctx, app.Webhook, header, body)
//	ok := err == nil && answer.OK()
package guard

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	maxURL        = 2048
	maxHeader     = 16 << 10
	maxBody       = 64 << 10
	drainTime     = time.Second
	maxRetryAfter = 24 * time.Hour
)

// Errors of this package. What [Guard.Post] returns wraps one of them, a context's error, or says in fixed words what failed.
var (
	// ErrURL: the URL may not be posted to, whatever it resolves to.
	ErrURL = errors.New("guard: URL refused")
	// ErrAddress: the host resolved to an address that is not public.
	ErrAddress = errors.New("guard: address refused")
	// ErrAnswer: the far side answered, but not in bounded HTTP.
	ErrAnswer = errors.New("guard: not an HTTP answer")
)

// Options of [New]. The zero value guards with the defaults below.
type Options struct {
	// Allow names hosts that may resolve to any address and may be reached by http: "host" for any port, "host:port"
	// for one. An IPv6 address is written in brackets. Case and a final dot do not matter. Zero: none.
	Allow []string
	// Loopback allows "localhost", names below it and loopback addresses as hosts, by http as well, as long as they
	// resolve to loopback addresses: for development. Other names that resolve to loopback stay refused.
	Loopback bool
	// Timeout bounds one Post, from looking up the name to the end of the answer. Zero: 10 seconds.
	Timeout time.Duration
	// Resolver looks names up. Nil: net.DefaultResolver.
	Resolver *net.Resolver
	// TLS is the base of the TLS configuration, for roots of one's own. It is cloned. Nil: the system's roots.
	// Versions below 1.2 are not offered in either case.
	TLS *tls.Config
}

// A Guard posts. It may be used by many goroutines. It starts no goroutine of its own but what [http.Transport] keeps
// for idle connections, which [Guard.Close] and 90 seconds end.
type Guard struct {
	allow     map[string]bool
	loopback  bool
	timeout   time.Duration
	dialer    net.Dialer
	transport *http.Transport
}

// New returns a Guard, or an error that names every malformed entry of Allow.
func New(o Options) (*Guard, error) {
	g := &Guard{allow: make(map[string]bool), loopback: o.Loopback, timeout: o.Timeout}
	var faults []error
	for _, entry := range o.Allow {
		host, port, err := splitEntry(entry)
		if err != nil {
			faults = append(faults, fmt.Errorf("guard: allow %q: %w", entry, err))
			continue
		}
		g.allow[allowKey(host, port)] = true
	}
	if o.Timeout < 0 {
		faults = append(faults, fmt.Errorf("guard: timeout %v is negative", o.Timeout))
	}
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	if g.timeout == 0 {
		g.timeout = 10 * time.Second
	}
	config := o.TLS.Clone()
	if config == nil {
		config = &tls.Config{}
	}
	if config.MinVersion < tls.VersionTLS12 {
		config.MinVersion = tls.VersionTLS12
	}
	g.dialer = net.Dialer{Timeout: g.timeout, Resolver: o.Resolver}
	// HTTP/1 alone: one connection, one judgement, and nothing that a stranger's server can push or multiplex.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	g.transport = &http.Transport{
		Proxy:                  nil, // never the environment's
		DialContext:            g.dial,
		TLSClientConfig:        config,
		TLSHandshakeTimeout:    g.timeout,
		ResponseHeaderTimeout:  g.timeout,
		MaxResponseHeaderBytes: maxHeader,
		DisableCompression:     true, // 64 KiB on the wire are to be 64 KiB here
		MaxIdleConns:           256,
		MaxIdleConnsPerHost:    2,
		IdleConnTimeout:        90 * time.Second,
		Protocols:              &protocols,
	}
	return g, nil
}

// Close closes idle connections. Posts under way go on.
func (g *Guard) Close() { g.transport.CloseIdleConnections() }

// CheckURL tells whether raw is a URL that Post would try: absolute, https (or http to a host allowed by name), with a
// host, without userinfo or fragment, of at most 2048 bytes, and, if the host is an address, a public one. Names are
// not looked up. Errors wrap [ErrURL] or [ErrAddress].
func (g *Guard) CheckURL(raw string) error {
	_, err := g.parse(raw)
	return err
}

func (g *Guard) parse(raw string) (*url.URL, error) {
	if len(raw) > maxURL {
		return nil, fmt.Errorf("%w: longer than %d bytes", ErrURL, maxURL)
	}
	u, err := url.Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: malformed", ErrURL) // the parser's error quotes the URL
	}
	switch {
	case u.Scheme != "https" && u.Scheme != "http":
		return nil, fmt.Errorf("%w: the scheme is not https", ErrURL)
	case u.Opaque != "" || u.Hostname() == "":
		return nil, fmt.Errorf("%w: no host", ErrURL)
	case u.User != nil:
		return nil, fmt.Errorf("%w: userinfo", ErrURL)
	case strings.Contains(raw, "#"):
		return nil, fmt.Errorf("%w: fragment", ErrURL)
	case strings.HasSuffix(u.Host, ":"):
		return nil, fmt.Errorf("%w: empty port", ErrURL)
	}
	host, port := u.Hostname(), u.Port()
	if port == "" {
		port = map[string]string{"https": "443", "http": "80"}[u.Scheme]
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 || port[0] == '0' {
		return nil, fmt.Errorf("%w: bad port", ErrURL)
	}
	if !plainHost(host) {
		return nil, fmt.Errorf("%w: bad host (write other alphabets in punycode)", ErrURL)
	}
	switch g.trust(host, port) {
	case trusted, trustedLoopback:
		return u, nil
	}
	if u.Scheme != "https" {
		return nil, fmt.Errorf("%w: http, and %s is not allowed by name", ErrURL, host)
	}
	if n != 443 && n < 1024 {
		return nil, fmt.Errorf("%w: port %d is neither 443 nor from 1024 up", ErrURL, n)
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		if err := CheckAddr(addr); err != nil {
			return nil, err
		}
	}
	return u, nil
}

// plainHost takes what can be compared byte by byte: a DNS name in ASCII or an address without zone.
func plainHost(host string) bool {
	if len(host) > 253+1 {
		return false
	}
	if strings.Contains(host, ":") {
		addr, err := netip.ParseAddr(host)
		return err == nil && addr.Zone() == ""
	}
	for i := range len(host) {
		c := host[i] | 0x20
		if (c < 'a' || c > 'z') && (host[i] < '0' || host[i] > '9') && host[i] != '-' && host[i] != '.' && host[i] != '_' {
			return false
		}
	}
	return true
}

type trust uint8

const (
	stranger trust = iota
	trustedLoopback
	trusted
)

// trust judges the name as it is written in the URL.
func (g *Guard) trust(host, port string) trust {
	if g.allow[allowKey(host, "")] || g.allow[allowKey(host, port)] {
		return trusted
	}
	if g.loopback {
		name := normal(host)
		addr, err := netip.ParseAddr(name)
		if name == "localhost" || strings.HasSuffix(name, ".localhost") || err == nil && addr.IsLoopback() {
			return trustedLoopback
		}
	}
	return stranger
}

func normal(host string) string {
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.String() // one text for each IPv6 address
	}
	return host
}

func allowKey(host, port string) string { return normal(host) + "|" + port }

func splitEntry(entry string) (host, port string, err error) {
	host = entry
	if bare, ok := strings.CutPrefix(entry, "["); ok && strings.HasSuffix(bare, "]") {
		host = strings.TrimSuffix(bare, "]")
	} else if strings.Contains(entry, ":") {
		if host, port, err = net.SplitHostPort(entry); err != nil {
			return "", "", errors.New("want host, host:port, [address] or [address]:port")
		}
		if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 || port[0] == '0' {
			return "", "", errors.New("bad port")
		}
	}
	if host == "" || host == "." || !plainHost(host) {
		return "", "", errors.New("want a host name or an address, without scheme, path or wildcard")
	}
	return host, port, nil
}

// dial is the transport's. addr is host:port as written in the URL; the dialer looks the host up and calls Control
// for each address, just before it connects to it.
func (g *Guard) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("%w: no host", ErrURL)
	}
	level := g.trust(host, port)
	d := g.dialer
	d.ControlContext = func(_ context.Context, network, address string, _ syscall.RawConn) error {
		return judge(level, network, address)
	}
	return d.DialContext(ctx, network, addr)
}

func judge(level trust, network, address string) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil || !strings.HasPrefix(network, "tcp") {
		return &addressError{"not an internet address"}
	}
	switch level {
	case trusted:
		return nil
	case trustedLoopback:
		if ap.Addr().Unmap().IsLoopback() {
			return nil
		}
		return &addressError{"a name of the loopback, but another address"}
	}
	return CheckAddr(ap.Addr())
}

// An Answer is all that is taken from the far side.
type Answer struct {
	Status     int           // the HTTP status, 200 to 999
	RetryAfter time.Duration // how long it asks to be left alone (RFC 9110 §10.2.3), at most 24 hours; 0: it did not say
}

// OK reports whether the status is a success, 200 to 299.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status <= 299 }

// Post sends body to the URL with a copy of the headers and returns the answer, a redirect too. Once the status is there
// it counts, whatever becomes of the answer's body. Content-Type defaults to application/json.
//
// Errors say "guard: post to host: …" and wrap [ErrURL], [ErrAddress], [ErrAnswer], [context.Canceled] or
// [context.DeadlineExceeded] (which also stands for the timeout of Options), or have fixed words.
func (g *Guard) Post(ctx context.Context, rawURL string, header http.Header, body []byte) (Answer, error) {
	u, err := g.parse(rawURL)
	if err != nil {
		return Answer{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, g.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, u.String(), bytes.NewReader(body))
	if err != nil {
		return Answer{}, fmt.Errorf("%w: malformed", ErrURL)
	}
	for name, values := range header {
		req.Header[http.CanonicalHeaderKey(name)] = append([]string(nil), values...)
	}
	if req.Header.Get("Content-Type") == "" {
		req.Header.Set("Content-Type", "application/json")
	}
	if _, set := req.Header["User-Agent"]; !set {
		req.Header.Set("User-Agent", "behest-webhook/1")
	}
	// The transport and not http.Client: it knows neither redirects nor cookies, and its errors have no URL.
	resp, err := g.transport.RoundTrip(req)
	if err != nil {
		return Answer{}, fmt.Errorf("guard: post to %s: %w", u.Hostname(), plain(ctx, err))
	}
	defer resp.Body.Close()
	if resp.StatusCode < 200 { // 101: the rest is no longer HTTP, and reading it would heed no timeout
		return Answer{}, fmt.Errorf("guard: post to %s: %w", u.Hostname(), ErrAnswer)
	}
	// Reading on is for the connection's sake alone, so it does not keep the caller for long.
	stop := time.AfterFunc(drainTime, cancel)
	defer stop.Stop()
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody)
	return Answer{Status: resp.StatusCode, RetryAfter: retryAfter(resp.Header)}, nil
}

// plain replaces an error of the network by one that has nothing of the far side in it: net/http quotes malformed
// answers, TLS quotes certificates, the resolver quotes servers.
func plain(ctx context.Context, err error) error {
	var (
		refused *addressError
		dns     *net.DNSError
		record  tls.RecordHeaderError
		cert    *tls.CertificateVerificationError
		network net.Error
		op      *net.OpError
	)
	switch {
	case errors.As(err, &refused):
		return refused // without what the dialer put around it: the address
	case errors.Is(err, ErrURL):
		return ErrURL
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &network) && network.Timeout():
		return context.DeadlineExceeded
	case errors.As(err, &dns):
		return errors.New("the name does not resolve")
	case errors.As(err, &record), errors.As(err, &cert), strings.HasPrefix(err.Error(), "tls: "):
		return errors.New("TLS failed")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused")
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed")
	case errors.As(err, &op) && (op.Op == "remote error" || op.Op == "local error"): // how crypto/tls names its alerts
		return errors.New("TLS failed")
	case op != nil:
		return errors.New("connection failed")
	}
	return ErrAnswer
}

// retryAfter reads seconds, or a date, which is taken relative to the answer's own Date: the same clock.
func retryAfter(h http.Header) time.Duration {
	v := h.Get("Retry-After")
	if v == "" {
		return 0
	}
	if n, err := strconv.ParseUint(v, 10, 31); err == nil {
		return min(time.Duration(n)*time.Second, maxRetryAfter)
	}
	at, err := http.ParseTime(v)
	if err != nil {
		return 0
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil {
		return 0
	}
	return min(max(at.Sub(date), 0), maxRetryAfter)
}
