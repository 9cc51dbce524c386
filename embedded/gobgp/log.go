package gobgp

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/osrg/gobgp/v3/pkg/log"
	"github.com/osrg/gobgp/v3/pkg/packet/bgp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logger takes gobgp's log. Its Panic and Fatal are not expected to return: the goroutine ends, the speaker is marked as broken, and
// nothing else of the node stops.
type logger struct {
	zap   *zap.Logger
	state *state
}

func fields(in log.Fields) []zap.Field {
	out := make([]zap.Field, 0, len(in))
	for key, value := range in {
		if key != "Topic" {
			out = append(out, zap.Any(strings.ToLower(key), value))
		}
	}
	return out
}

func (l *logger) stop(msg string, f log.Fields) {
	l.zap.Error("the BGP speaker has failed and will be started anew: "+msg, fields(f)...)
	l.state.fail(msg)
	runtime.Goexit()
}

// Panic implements log.Logger.
func (l *logger) Panic(msg string, f log.Fields) { l.stop(msg, f) }

// ownEnd is gobgp's word for the end of a session that we have removed.
const ownEnd = "dying"

// Fatal implements log.Logger.
func (l *logger) Fatal(msg string, f log.Fields) { l.stop(msg, f) }

func (l *logger) Error(msg string, f log.Fields) { l.zap.Error(msg, fields(f)...) }

func (l *logger) Warn(msg string, f log.Fields) {
	if key, ok := f["Key"].(string); ok {
		l.trouble(key, msg, f)
	}
	l.zap.Warn(msg, fields(f)...)
}

func (l *logger) Info(msg string, f log.Fields) {
	key, _ := f["Key"].(string)
	switch msg {
	case "Peer Up":
		l.state.note(key, "")
	case "Peer Down":
		reason := fmt.Sprint(f["Reason"])
		if reason == ownEnd { // it may be said after the next session with the same peer was added, which it says nothing about
			break
		}
		l.state.down(key)
		if !l.state.explained(key) {
			l.state.note(key, "the session ended: "+reason)
		}
	}
	l.zap.Info(msg, fields(f)...)
}

// Debug implements log.Logger.
func (l *logger) Debug(msg string, f log.Fields) {
	if entry := l.zap.Check(zapcore.DebugLevel, msg); entry != nil {
		entry.Write(fields(f)...)
	}
}

// SetLevel implements log.Logger; the level is the daemon's.
func (l *logger) SetLevel(log.LogLevel) {}

// GetLevel implements log.Logger. gobgp builds the texts of its debug messages only when this says so.
func (l *logger) GetLevel() log.LogLevel {
	if l.zap.Core().Enabled(zapcore.DebugLevel) {
		return log.DebugLevel
	}
	return log.InfoLevel
}

// trouble keeps, from the messages about a session, the one that says why there is none: gobgp's interface does not tell.
func (l *logger) trouble(neighbour, msg string, f log.Fields) {
	code, ok1 := f["Code"].(uint8)
	subcode, ok2 := f["Subcode"].(uint8)
	if ok1 && ok2 {
		text := notification(code, subcode)
		switch msg {
		case "sent notification":
			l.state.note(neighbour, "we ended the session: "+text)
		case "received notification":
			l.state.note(neighbour, "the peer ended the session: "+text)
		}
		return
	}
	switch msg {
	case "hold timer expired", "graceful restart timer expired":
		l.state.note(neighbour, msg)
	case "sent notification": // with the message as a whole in Data
		if e, ok := f["Data"].(*bgp.MessageError); ok {
			l.state.note(neighbour, "we ended the session: "+notification(e.TypeCode, e.SubTypeCode))
		}
	}
}

// notification says a code of RFC 4271, section 4.5, in words.
func notification(code, subcode uint8) string {
	switch {
	case code == bgp.BGP_ERROR_OPEN_MESSAGE_ERROR && subcode == bgp.BGP_ERROR_SUB_BAD_PEER_AS:
		return "the AS number of one end is not what the other expects (bad peer AS): compare peerASN and localASN with the router's settings"
	case code == bgp.BGP_ERROR_CEASE && subcode == bgp.BGP_ERROR_SUB_MAXIMUM_NUMBER_OF_PREFIXES_REACHED:
		return "too many routes (maximum number of prefixes reached)"
	}
	return bgp.NewNotificationErrorCode(code, subcode).String()
}
