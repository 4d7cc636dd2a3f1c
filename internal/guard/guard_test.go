package guard

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func guardWith(t testing.TB, o Options) *Guard {
	g, err := New(o)
	require.NoError(t, err)
	t.Cleanup(g.Close)
	return g
}

// names is a resolver that knows these A records and no others. What it answers may change between two questions.
func names(t testing.TB, answer func(name string) []netip.Addr) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { ours.Close(); theirs.Close() })
		go serveDNS(theirs, answer)
		return ours, nil
	}}
}

// serveDNS answers over a stream (RFC 1035 §4.2.2: two bytes of length), A questions alone.
func serveDNS(conn net.Conn, answer func(string) []netip.Addr) {
	defer conn.Close()
	for {
		var size [2]byte
		if _, err := io.ReadFull(conn, size[:]); err != nil {
			return
		}
		q := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(conn, q); err != nil || len(q) < 17 {
			return
		}
		var labels []string
		i := 12
		for i < len(q) && q[i] != 0 {
			labels = append(labels, string(q[i+1:i+1+int(q[i])]))
			i += 1 + int(q[i])
		}
		kind := binary.BigEndian.Uint16(q[i+1:])
		end := i + 5
		var records []byte
		count := 0
		addrs := answer(strings.ToLower(strings.Join(labels, ".")))
		for _, a := range addrs {
			if kind == 1 && a.Is4() || kind == 28 && a.Is6() {
				b := a.AsSlice()
				records = append(records, 0xc0, 12, 0, byte(kind), 0, 1, 0, 0, 0, 0, 0, byte(len(b)))
				records = append(records, b...)
				count++
			}
		}
		r := append([]byte{0, 0}, q[:end]...)
		binary.BigEndian.PutUint16(r[4:], 0x8580) // an answer, authoritative, recursion as asked
		if addrs == nil {
			r[5] |= 3 // no such name
		}
		binary.BigEndian.PutUint16(r[8:], uint16(count))
		copy(r[10:], []byte{0, 0, 0, 0})
		r = append(r, records...)
		binary.BigEndian.PutUint16(r, uint16(len(r)-2))
		if _, err := conn.Write(r); err != nil {
			return
		}
	}
}

func port(t testing.TB, raw string) string {
	u, err := url.Parse(raw)
	require.NoError(t, err)
	return u.Port()
}

func TestCheckURL(t *testing.T) {
	g := guardWith(t, Options{Allow: []string{"Hooks.Internal:8080", "other.internal.", "10.1.2.3", "[fd00::1]:9000", "[fd00::2]"}})
	for _, good := range []string{
		"https://bookbot.example/hook", "https://bookbot.example", "https://bookbot.example:443/", "https://bookbot.example:8443/a?b=c",
		"https://BOOKBOT.example./", "https://8.8.8.8/", "https://[2606:4700::1111]/", "https://xn--fiqs8s.example/", "HTTPS://bookbot.example/",
		"http://hooks.internal:8080/", "http://HOOKS.internal.:8080/", "https://hooks.internal:8080/", "http://other.internal/", "https://other.internal:22/",
		"http://10.1.2.3:81/", "http://[fd00::1]:9000/", "http://[fd00:0:0::1]:9000/", "https://[fd00::2]/",
		"https://localhost/", // a name like any other: its address is refused
	} {
		require.NoError(t, g.CheckURL(good), good)
	}
	for bad, want := range map[string]error{
		"":                                        ErrURL,
		"bookbot.example/hook":                    ErrURL,
		"//bookbot.example/":                      ErrURL,
		"https:bookbot.example":                   ErrURL,
		"https://":                                ErrURL,
		"https://:443/":                           ErrURL,
		"https://bookbot.example:/":               ErrURL,
		"https://bookbot.example:0/":              ErrURL,
		"https://bookbot.example:65536/":          ErrURL,
		"https://bookbot.example:00443/":          ErrURL,
		"https://bookbot.example:22/":             ErrURL,
		"https://bookbot.example:1023/":           ErrURL,
		"http://bookbot.example/":                 ErrURL,
		"http://hooks.internal/":                  ErrURL, // another port than the allowed one
		"http://hooks.internal:8081/":             ErrURL,
		"http://x.hooks.internal:8080/":           ErrURL,
		"ftp://bookbot.example/":                  ErrURL,
		"file:///etc/passwd":                      ErrURL,
		"gopher://bookbot.example:1024/":          ErrURL,
		"https://user@bookbot.example/":           ErrURL,
		"https://user:pw@other.internal/":         ErrURL,
		"https://@bookbot.example/":               ErrURL,
		"https://bookbot.example/#a":              ErrURL,
		"https://bookbot.example/#":               ErrURL,
		"https://bookbot.example\\@evil/":         ErrURL,
		"https://book bot.example/":               ErrURL,
		"https://bücher.example/":                 ErrURL,
		"https://bookbot.example%2f/":             ErrURL,
		"https://[fe80::1%25eth0]/":               ErrURL,
		"https://bookbot.example/\x7f":            ErrURL,
		"https://a/" + string(make([]byte, 2048)): ErrURL,
		"https://127.0.0.1/":                      ErrAddress,
		"https://10.1.2.4/":                       ErrAddress,
		"https://[::1]/":                          ErrAddress,
		"https://[::ffff:169.254.169.254]/":       ErrAddress,
		"https://[fd00::1]:9001/":                 ErrAddress,
		"https://[64:ff9b::a00:1]/":               ErrAddress,
	} {
		err := g.CheckURL(bad)
		require.ErrorIs(t, err, want, bad)
		require.NotContains(t, err.Error(), "pw")
		require.NotContains(t, err.Error(), "passwd")
	}
}

func TestNewNamesEveryFault(t *testing.T) {
	_, err := New(Options{Allow: []string{"", "http://x", "*.example", "a:b:c", "x:0", "x:70000", "[::1", "x/y", ".", "good", "ok:1"}, Timeout: -1})
	require.Error(t, err)
	for _, entry := range []string{`""`, `"http://x"`, `"*.example"`, `"a:b:c"`, `"x:0"`, `"x:70000"`, `"[::1"`, `"x/y"`, `"."`, "negative"} {
		require.ErrorContains(t, err, entry)
	}
	require.NotContains(t, err.Error(), "good")
	require.NotContains(t, err.Error(), "ok:1")
}

// The address is judged after DNS: a public name that leads inside is refused, and one that is allowed is not.
func TestNamesAreJudgedByTheirAddress(t *testing.T) {
	var hits atomic.Int32
	srv := httptest.NewTLSServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { hits.Add(1) }))
	defer srv.Close()
	p := port(t, srv.URL)
	resolver := names(t, func(name string) []netip.Addr {
		switch name {
		case "evil.example.com", "example.com", "mixed.example.com":
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
		case "metadata.example.com":
			return []netip.Addr{netip.MustParseAddr("169.254.169.254")}
		case "six.example.com":
			return []netip.Addr{netip.MustParseAddr("::1")}
		case "mapped.example.com":
			return []netip.Addr{netip.MustParseAddr("::ffff:127.0.0.1")}
		}
		return nil
	})
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate()) // it is for example.com
	g := guardWith(t, Options{Resolver: resolver, TLS: &tls.Config{RootCAs: roots}, Allow: []string{"Example.com:" + p}})

	for _, name := range []string{"evil.example.com", "metadata.example.com", "six.example.com", "mapped.example.com"} {
		_, err := g.Post(t.Context(), "https://"+name+":"+p+"/hook?token=hidden", nil, nil)
		require.ErrorIs(t, err, ErrAddress, name)
		require.ErrorContains(t, err, name)
		for _, leak := range []string{"127.0.0.1", "169.254", "::1", "hidden", "hook"} {
			require.NotContains(t, err.Error(), leak)
		}
	}
	require.Zero(t, hits.Load())
	answer, err := g.Post(t.Context(), "https://example.com:"+p+"/hook", nil, nil)
	require.NoError(t, err)
	require.Equal(t, 200, answer.Status)
	require.EqualValues(t, 1, hits.Load())

	_, err = g.Post(t.Context(), "https://unknown.example.com/", nil, nil)
	require.EqualError(t, err, "guard: post to unknown.example.com: the name does not resolve")
}

// A name that was public when it was first looked up, and is not when it is connected to.
func TestRebinding(t *testing.T) {
	var asked atomic.Int32
	resolver := names(t, func(string) []netip.Addr {
		asked.Add(1)
		return []netip.Addr{netip.MustParseAddr("10.0.0.1")}
	})
	g := guardWith(t, Options{Resolver: resolver})
	require.NoError(t, g.CheckURL("https://rebind.example.com/"), "names are not looked up")
	require.Zero(t, asked.Load())
	_, err := g.Post(t.Context(), "https://rebind.example.com/", nil, nil)
	require.ErrorIs(t, err, ErrAddress)
}

func TestLoopbackIsByOptionAndByName(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer srv.Close()
	p := port(t, srv.URL)

	closed := guardWith(t, Options{})
	_, err := closed.Post(t.Context(), srv.URL, nil, nil)
	require.ErrorIs(t, err, ErrURL)
	_, err = closed.Post(t.Context(), "https://127.0.0.1:"+p, nil, nil)
	require.ErrorIs(t, err, ErrAddress)
	_, err = closed.Post(t.Context(), "https://localhost:"+p, nil, nil)
	require.ErrorIs(t, err, ErrAddress)

	elsewhere := guardWith(t, Options{Loopback: true, Resolver: names(t, func(name string) []netip.Addr {
		if name == "app.localhost" {
			return []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	})})
	answer, err := elsewhere.Post(t.Context(), srv.URL, nil, nil)
	require.NoError(t, err)
	require.True(t, answer.OK())
	_, err = elsewhere.Post(t.Context(), "http://app.localhost:"+p, nil, nil)
	require.ErrorIs(t, err, ErrAddress, "a name of the loopback that leads elsewhere")
	_, err = elsewhere.Post(t.Context(), "https://pretends.example.com:"+p, nil, nil)
	require.ErrorIs(t, err, ErrAddress, "another name that leads to the loopback")
	_, err = elsewhere.Post(t.Context(), "http://notlocalhost:"+p, nil, nil)
	require.ErrorIs(t, err, ErrURL)
}

func TestPost(t *testing.T) {
	type got struct {
		header http.Header
		body   string
		method string
	}
	seen := make(chan got, 1)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		seen <- got{r.Header, string(b), r.Method}
		w.Header().Set("Set-Cookie", "a=b")
		w.WriteHeader(http.StatusNoContent)
	}))
	defer srv.Close()
	g := guardWith(t, Options{Loopback: true})
	h := http.Header{"Webhook-Id": {"msg_1"}}
	for range 2 {
		answer, err := g.Post(t.Context(), srv.URL, h, []byte(`{"a":1}`))
		require.NoError(t, err)
		require.Equal(t, Answer{Status: 204}, answer)
		r := <-seen
		require.Equal(t, "POST", r.method)
		require.Equal(t, `{"a":1}`, r.body)
		require.Equal(t, "msg_1", r.header.Get("webhook-id"))
		require.Equal(t, "application/json", r.header.Get("Content-Type"))
		require.Equal(t, "behest-webhook/1", r.header.Get("User-Agent"))
		require.Empty(t, r.header.Get("Cookie"))
		require.Empty(t, r.header.Get("Accept-Encoding"))
	}
	require.Len(t, h, 1, "the caller's headers are left alone")
}

func TestRedirectsAreAnswers(t *testing.T) {
	var hits atomic.Int32
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		hits.Add(1)
		var status int
		_, _ = fmt.Sscanf(r.URL.Path, "/%d", &status)
		w.Header().Set("Location", "/200")
		if status == 399 {
			w.Header().Set("Location", "http://%zz secret/")
		}
		w.WriteHeader(status)
	}))
	defer srv.Close()
	g := guardWith(t, Options{Loopback: true})
	for _, status := range []int{301, 302, 303, 307, 308, 399, 410, 500} {
		hits.Store(0)
		answer, err := g.Post(t.Context(), fmt.Sprintf("%s/%d", srv.URL, status), nil, []byte("x"))
		require.NoError(t, err)
		require.Equal(t, status, answer.Status)
		require.False(t, answer.OK())
		require.EqualValues(t, 1, hits.Load())
	}
}

func TestNoProxyOfTheEnvironment(t *testing.T) {
	g := guardWith(t, Options{})
	require.Nil(t, g.transport.Proxy)
}

func TestRetryAfter(t *testing.T) {
	const date = "Mon, 01 Jun 2026 12:00:00 GMT"
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "5": 5 * time.Second, "86401": 24 * time.Hour, "99999999999999": 0, "-1": 0, "1.5": 0, "soon": 0,
		"Mon, 01 Jun 2026 12:01:00 GMT": time.Minute, "Mon, 01 Jun 2026 11:59:00 GMT": 0, "Mon, 01 Jun 2099 11:59:00 GMT": 24 * time.Hour,
	} {
		require.Equal(t, want, retryAfter(http.Header{"Retry-After": {value}, "Date": {date}}), value)
	}
	require.Zero(t, retryAfter(http.Header{"Retry-After": {date}}), "a date without a Date to hold it against")
}

// raw is a server that says these bytes to whatever it is asked, and then does what after does.
func raw(t *testing.T, say string, after func(net.Conn)) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				req, err := http.ReadRequest(bufio.NewReader(conn))
				if err != nil {
					return
				}
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(conn, say)
				if after != nil {
					after(conn)
				}
			})
		}
	})
	return "http://" + l.Addr().String() + "/hook?q=hidden"
}

func hang(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }

// Whatever the far side says, none of it is in the error.
func TestAnswersAreNotShown(t *testing.T) {
	g := guardWith(t, Options{Loopback: true, Timeout: 2 * time.Second})
	for name, say := range map[string]string{
		"not HTTP":         "SSH-2.0-internalsecret\r\n",
		"bad status":       "HTTP/1.1 internalsecret\r\n\r\n",
		"bad header":       "HTTP/1.1 200 OK\r\ninternalsecret\r\n\r\n",
		"bad length":       "HTTP/1.1 200 OK\r\nContent-Length: internalsecret\r\n\r\n",
		"bad encoding":     "HTTP/1.1 200 OK\r\nTransfer-Encoding: internalsecret\r\n\r\n",
		"huge header":      "HTTP/1.1 200 OK\r\nX: " + strings.Repeat("internalsecret", 4096) + "\r\n\r\n",
		"endless informal": strings.Repeat("HTTP/1.1 103 Early\r\nLink: internalsecret\r\n\r\n", 4096),
		"upgrade":          "HTTP/1.1 101 Switching Protocols\r\nUpgrade: internalsecret\r\nConnection: Upgrade\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := g.Post(t.Context(), raw(t, say, nil), nil, []byte("x"))
			require.ErrorIs(t, err, ErrAnswer)
			require.EqualError(t, err, "guard: post to 127.0.0.1: guard: not an HTTP answer")
		})
	}
	_, err := g.Post(t.Context(), raw(t, "", nil), nil, nil)
	require.EqualError(t, err, "guard: post to 127.0.0.1: connection closed")

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	l.Close()
	_, err = g.Post(t.Context(), "http://"+l.Addr().String()+"/?q=hidden", nil, nil)
	require.EqualError(t, err, "guard: post to 127.0.0.1: connection refused")
	_, err = g.Post(t.Context(), strings.Replace(raw(t, "HTTP/1.1 400 internalsecret\r\n\r\n", nil), "http:", "https:", 1), nil, nil)
	require.ErrorContains(t, err, "guard: post to 127.0.0.1: ")
	require.NotContains(t, err.Error(), "internalsecret")

	srv := httptest.NewTLSServer(http.NotFoundHandler())
	defer srv.Close()
	srv.Config.ErrorLog = nil
	_, err = g.Post(t.Context(), srv.URL, nil, nil) // its certificate is nobody's
	require.EqualError(t, err, "guard: post to 127.0.0.1: TLS failed")
}

// What the network says is put in fixed words, which tell apart what an operator has to tell apart.
func TestErrorsArePlain(t *testing.T) {
	secret := errors.New("internalsecret")
	for want, list := range map[string][]error{
		"TLS failed": {&net.OpError{Op: "remote error", Err: secret}, fmt.Errorf("x: %w", &tls.CertificateVerificationError{Err: secret}),
			tls.RecordHeaderError{Msg: "internalsecret"}, errors.New("tls: internalsecret")},
		"connection failed":                           {&net.OpError{Op: "dial", Err: syscall.ENETUNREACH}, &net.OpError{Op: "read", Err: secret}},
		"connection refused":                          {&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}},
		"connection closed":                           {&net.OpError{Op: "read", Err: syscall.ECONNRESET}, io.EOF, io.ErrUnexpectedEOF, syscall.EPIPE},
		"the name does not resolve":                   {&net.OpError{Op: "dial", Err: &net.DNSError{Err: "internalsecret", Name: "x", Server: "10.0.0.53"}}},
		"context deadline exceeded":                   {&net.OpError{Op: "dial", Err: context.DeadlineExceeded}, &net.DNSError{IsTimeout: true}},
		"guard: URL refused":                          {&net.OpError{Op: "dial", Err: ErrURL}},
		"guard: address refused: loopback (RFC 1122)": {&net.OpError{Op: "dial", Err: CheckAddr(netip.MustParseAddr("127.0.0.1"))}},
		"guard: not an HTTP answer":                   {secret},
	} {
		for _, err := range list {
			require.EqualError(t, plain(t.Context(), err), want)
		}
	}
}

// The status counts once it is there; what follows is read a little and for a moment.
func TestBodiesAreBounded(t *testing.T) {
	g := guardWith(t, Options{Loopback: true, Timeout: time.Minute})
	for name, url := range map[string]string{
		"endless": raw(t, "HTTP/1.1 200 OK\r\n\r\n", func(c net.Conn) {
			for {
				if _, err := c.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}),
		"announced and not sent": raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", hang),
		"malformed chunks":       raw(t, "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", nil),
		"cut":                    raw(t, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nx", nil),
	} {
		began := time.Now()
		answer, err := g.Post(t.Context(), url, nil, nil)
		require.NoError(t, err, name)
		require.Equal(t, 200, answer.Status, name)
		require.Less(t, time.Since(began), 20*time.Second, name)
	}
	began := time.Now()
	_, err := g.Post(t.Context(), raw(t, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: Upgrade\r\n\r\n", hang), nil, nil)
	require.ErrorIs(t, err, ErrAnswer)
	require.Less(t, time.Since(began), 20*time.Second)
}

func TestTimeoutAndCancel(t *testing.T) {
	g := guardWith(t, Options{Loopback: true, Timeout: 50 * time.Millisecond})
	_, err := g.Post(t.Context(), raw(t, "", hang), nil, nil)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.EqualError(t, err, "guard: post to 127.0.0.1: context deadline exceeded")

	patient := guardWith(t, Options{Loopback: true})
	ctx, cancel := context.WithCancel(t.Context())
	_, err = patient.Post(ctx, raw(t, "", func(c net.Conn) { cancel(); hang(c) }), nil, nil)
	require.ErrorIs(t, err, context.Canceled)
}

// A connection is used again for the same scheme, host and port alone: another name of the same server is judged anew.
func TestReuse(t *testing.T) {
	var conns atomic.Int32
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	srv.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}
	srv.StartTLS()
	defer srv.Close()
	p := port(t, srv.URL)
	roots := x509.NewCertPool()
	roots.AddCert(srv.Certificate())
	g := guardWith(t, Options{
		Resolver: names(t, func(string) []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }),
		TLS:      &tls.Config{RootCAs: roots, InsecureSkipVerify: true},
		Allow:    []string{"example.com"},
	})
	for range 3 {
		_, err := g.Post(t.Context(), "https://example.com:"+p, nil, nil)
		require.NoError(t, err)
	}
	require.EqualValues(t, 1, conns.Load())
	for _, other := range []string{"https://www.example.com:" + p, "https://127.0.0.1:" + p} {
		_, err := g.Post(t.Context(), other, nil, nil)
		require.ErrorIs(t, err, ErrAddress)
	}
	require.EqualValues(t, 1, conns.Load())
}

func TestJudgeTakesNothingButTCP(t *testing.T) {
	require.ErrorIs(t, judge(trusted, "unix", "/run/docker.sock"), ErrAddress)
	require.ErrorIs(t, judge(trusted, "udp", "8.8.8.8:53"), ErrAddress)
	require.ErrorIs(t, judge(stranger, "tcp6", "[fe80::1%eth0]:443"), ErrAddress)
	require.NoError(t, judge(stranger, "tcp4", "8.8.8.8:443"))
	require.True(t, errors.Is(judge(trustedLoopback, "tcp4", "10.0.0.1:80"), ErrAddress))
}

// Whatever text is taken as a URL has no userinfo, and its host is judged as it will be dialled.
func FuzzCheckURL(f *testing.F) {
	g, err := New(Options{Allow: []string{"hooks.internal:8080"}})
	require.NoError(f, err)
	for _, s := range []string{"https://a.example/", "https://a@b/", "http://hooks.internal:8080/", "https://[::1]:443/", "https://0x7f.1/"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, raw string) {
		if err := g.CheckURL(raw); err != nil {
			require.True(t, errors.Is(err, ErrURL) || errors.Is(err, ErrAddress), "%v", err)
			return
		}
		u, err := url.Parse(raw)
		require.NoError(t, err)
		require.Nil(t, u.User)
		require.True(t, u.Scheme == "https" || g.trust(u.Hostname(), u.Port()) == trusted)
		if a, err := netip.ParseAddr(u.Hostname()); err == nil {
			require.NoError(t, CheckAddr(a))
		}
		req, err := http.NewRequest(http.MethodPost, raw, nil)
		require.NoError(t, err)
		require.Equal(t, u.Host, req.URL.Host)
	})
}
