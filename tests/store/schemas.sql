-- m001_secrets
CREATE TABLE "secret_check" (
   "id" INTEGER PRIMARY KEY,
   "token" BLOB NOT NULL
) STRICT
CREATE TABLE "secrets" (
   "name" TEXT PRIMARY KEY,
   "ciphertext" BLOB NOT NULL,
   "created_at" REAL NOT NULL
) STRICT

-- m002_audit
CREATE INDEX "idx_audit_started_at"
    ON "audit" ("started_at")
CREATE TABLE "audit" (
   "request_id" TEXT PRIMARY KEY,
   "started_at" REAL NOT NULL,
   "endpoint" TEXT NOT NULL,
   "dialect" TEXT,
   "model" TEXT,
   "status" INTEGER NOT NULL,
   "error_code" TEXT,
   "duration_s" REAL NOT NULL,
   "ttft_s" REAL,
   "tokens_in" INTEGER NOT NULL,
   "tokens_out" INTEGER NOT NULL,
   "tokens_cached" INTEGER NOT NULL
) STRICT

-- m003_aliases
CREATE TABLE "aliases" (
   "name" TEXT PRIMARY KEY,
   "target" TEXT NOT NULL
) STRICT

-- m004_imports
CREATE TABLE "imports" (
   "path" TEXT PRIMARY KEY,
   "added_at" REAL NOT NULL
) STRICT

-- m005_responses
CREATE INDEX "idx_responses_created_at"
    ON "responses" ("created_at")
CREATE TABLE "responses" (
   "id" TEXT PRIMARY KEY,
   "owner" TEXT,
   "created_at" REAL NOT NULL,
   "previous_id" TEXT,
   "input" BLOB NOT NULL,
   "output" BLOB NOT NULL,
   "response" BLOB NOT NULL
) STRICT
