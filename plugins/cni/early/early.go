// Package early forwards a CNI call to the daemon before anything else of the binary is initialised.
//
// The runtime starts this binary for every Pod. All linked packages together take 15 to 20 ms to initialise, most of it
// client-go and protobuf tables that a CNI call never needs. Since Go 1.21 the linker initialises packages in a fixed order:
// of those whose imports are done, the one with the lowest import path first (https://go.dev/ref/spec#Program_initialization).
// This package imports only os and syscall, and its module path starts with "a.", so its init runs first: it sends the
// environment and standard input over the socket as they are, prints the answer and exits. A test guards the order.
//
// If the daemon does not answer the connect, init returns and main takes the long way.
package early

import (
	"os"
	"syscall"
)

const (
	defaultSocket = "/run/weft/weft.sock"
	socketName    = "/weft.sock"
	// maxInput is more than any network configuration; the daemon refuses it with a proper error.
	maxInput = 1 << 20
	// answerTimeout is longer than the daemon allows itself for one call, in seconds.
	answerTimeout = 100
)

// Input is what was read from standard input before the daemon turned out to be away; main goes on with it.
var Input []byte

// Read is true when Input was read, also when it is empty.
var Read bool

func init() {
	if os.Getenv("CNI_COMMAND") == "" || len(os.Args) == 0 {
		return
	}
	plugin := calledAs(os.Args)
	if plugin == "" {
		return
	}
	Read = true
	if os.Getenv("CNI_COMMAND") != "VERSION" { // it needs no input, and people type it at a terminal
		Input = readAll(0, maxInput+1)
	}
	fd, ok := connect(socketPath(Input))
	if !ok {
		return
	}
	if !send(fd, request(plugin, Input), os.Getenv("CNI_NETNS")) {
		fail()
	}
	exit, body, ok := parse(readAll(fd, 8<<20))
	if !ok {
		fail()
	}
	writeAll(1, body)
	os.Exit(exit)
}

// calledAs returns the plugin that is called: the base name of the program, or of `weft NAME` the first argument. It is empty
// for the modes that are no plugin, whatever the environment says.
func calledAs(args []string) string {
	name := base(args[0])
	if name == "weft" && len(args) > 1 {
		name = args[1]
		switch name {
		case "weft-cni", "weft-ipam", "loopback", "portmap", "bandwidth", "host-local":
			return name
		}
		return ""
	}
	switch name {
	case "weftd", "weft-proxy", "weft-dns", "weft-bgp":
		return ""
	}
	return name
}

// fail answers "try again later" (CNI specification, error code 11): the daemon took the call and died over it.
func fail() {
	writeAll(1, []byte(`{"cniVersion":"1.1.0","code":11,"msg":"weftd ended the connection","details":"it is restarting or stopped; try again later"}`+"\n"))
	os.Exit(1)
}

func base(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '/' {
			return path[i+1:]
		}
	}
	return path
}

// socketPath takes the key "runDir" from the configuration without parsing it. A value with escapes gives no path: main then
// reads it properly, and nobody else's daemon gets the call.
func socketPath(conf []byte) string {
	const key = `"runDir"`
	for i := 0; i+len(key) < len(conf); i++ {
		if string(conf[i:i+len(key)]) != key {
			continue
		}
		value, ok := stringAfterColon(conf[i+len(key):])
		if !ok {
			continue
		}
		for _, c := range value {
			if c == '\\' {
				return ""
			}
		}
		if len(value) > 0 {
			return string(value) + socketName
		}
	}
	return defaultSocket
}

// stringAfterColon returns what stands between the quotes in text that goes on like: : "value"
func stringAfterColon(text []byte) (value []byte, ok bool) {
	start, colon := -1, false
	for j, c := range text {
		switch {
		case start >= 0:
			if c == '"' && text[j-1] != '\\' {
				return text[start:j], true
			}
		case c == ':' && !colon:
			colon = true
		case c == '"' && colon:
			start = j + 1
		case c != ' ' && c != '\t' && c != '\n' && c != '\r':
			return nil, false
		}
	}
	return nil, false
}

func connect(path string) (int, bool) {
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, false
	}
	// A daemon that is stopped or hangs must not hang the runtime too; connect waits as long as send may (unix(7)).
	for _, option := range []int{syscall.SO_RCVTIMEO, syscall.SO_SNDTIMEO} {
		_ = syscall.SetsockoptTimeval(fd, syscall.SOL_SOCKET, option, &syscall.Timeval{Sec: answerTimeout})
	}
	for {
		err := syscall.Connect(fd, &syscall.SockaddrUnix{Name: path})
		if err == nil {
			return fd, true
		}
		if err != syscall.EINTR {
			_ = syscall.Close(fd)
			return 0, false
		}
	}
}

// request prints an HTTP/1.0 request: 1.0, so that the answer is neither chunked nor kept alive. The body is the plugin's
// name and the CNI variables as NAME=VALUE, each ended by a zero byte, an empty one, then standard input.
func request(plugin string, stdin []byte) []byte {
	body := append([]byte("PLUGIN="+plugin), 0)
	for _, s := range os.Environ() {
		if len(s) > 4 && s[:4] == "CNI_" {
			body = append(append(body, s...), 0)
		}
	}
	body = append(append(body, 0), stdin...)
	head := "POST /cni HTTP/1.0\r\nContent-Type: application/octet-stream\r\nContent-Length: " + itoa(len(body)) + "\r\n\r\n"
	return append([]byte(head), body...)
}

// send writes the request, and with its first byte the network namespace as a file descriptor, so that the daemon needs no
// view of the runtime's mounts.
func send(fd int, msg []byte, netns string) bool {
	var oob []byte
	if netns != "" {
		if ns, err := syscall.Open(netns, syscall.O_RDONLY|syscall.O_CLOEXEC, 0); err == nil {
			oob = syscall.UnixRights(ns)
		}
	}
	for {
		n, err := syscall.SendmsgN(fd, msg, oob, nil, 0)
		if err == nil {
			return writeAll(fd, msg[n:])
		}
		if err != syscall.EINTR {
			return false
		}
	}
}

// parse takes the exit code (header Weft-Exit) and the body out of the answer.
func parse(resp []byte) (exit int, body []byte, ok bool) {
	const name = "\r\nWeft-Exit: "
	exit = -1
	for i := 0; i+4 <= len(resp); i++ {
		if exit < 0 && i+len(name) < len(resp) && string(resp[i:i+len(name)]) == name {
			exit = int(resp[i+len(name)] - '0')
		}
		if string(resp[i:i+4]) == "\r\n\r\n" {
			return exit, resp[i+4:], exit >= 0
		}
	}
	return 0, nil, false
}

func readAll(fd, most int) []byte {
	buf := make([]byte, 0, 16<<10)
	for len(buf) < most {
		if len(buf) == cap(buf) {
			buf = append(buf, 0)[:len(buf)]
		}
		n, err := syscall.Read(fd, buf[len(buf):cap(buf)])
		if err == syscall.EINTR {
			continue
		}
		if n <= 0 || err != nil {
			break
		}
		buf = buf[:len(buf)+n]
	}
	return buf
}

func writeAll(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := syscall.Write(fd, b)
		if err == syscall.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

func itoa(n int) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + string(rune('0'+n%10))
}
