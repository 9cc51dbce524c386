package coredns

import (
	stdlog "log"
	"strings"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// logWriter sends CoreDNS' lines, which go through the standard logger, to ours.
type logWriter struct{ log *zap.Logger }

var levels = map[string]zapcore.Level{
	"[DEBUG]": zapcore.DebugLevel, "[INFO]": zapcore.InfoLevel, "[WARNING]": zapcore.WarnLevel, "[ERROR]": zapcore.ErrorLevel,
	"[FATAL]": zapcore.ErrorLevel,
}

// Write takes one line.
func (w logWriter) Write(b []byte) (int, error) {
	line := strings.TrimSpace(string(b))
	level, text := zapcore.InfoLevel, line
	if word, rest, ok := strings.Cut(line, " "); ok {
		if l, known := levels[word]; known {
			level, text = l, rest
		}
	}
	w.log.Log(level, text)
	return len(b), nil
}

// redirectLog is for the whole process: CoreDNS has no logger of its own.
func redirectLog(log *zap.Logger) {
	stdlog.SetFlags(0)
	stdlog.SetOutput(logWriter{log})
}
